# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The backbone against the published network, the authors' package and the stack's variant."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmseg.models.backbones import ResNeSt as StockResNeSt
from published_reference import draw
from tiny_models import relative_error
from torch import nn
from user_errors import raises_user_error

from mmseg_resnest.models import ARCHITECTURES, DropBlock2d, ResNeSt

PARAMETERS = {
    "resnest14": 8_562_688,
    "resnest26": 15_020_448,
    "resnest50": 25_434_240,
    "resnest101": 46_226_016,
    "resnest200": 68_152_544,
    "resnest269": 108_880_480,
    "resnest50_fast_1s1x64d": 24_168_896,
    "resnest50_fast_2s1x64d": 25_434_240,
    "resnest50_fast_4s1x64d": 29_863_712,
    "resnest50_fast_1s2x40d": 23_897_680,
    "resnest50_fast_2s2x40d": 24_894_792,
    "resnest50_fast_4s2x40d": 28_368_592,
    "resnest50_fast_1s4x24d": 23_628_000,
}
OFTEN = ("resnest50", "resnest50_fast_4s2x40d")
PACKAGE_MODELS = [name for name in PARAMETERS if name not in ("resnest14", "resnest26")]
GOLDEN = [
    "resnest50_os8",
    "resnest50_os16",
    "resnest50_os32",
    "resnest101_os8",
    "resnest101_os32",
    "resnest50_fast_1s1x64d_os8",
    "resnest50_fast_2s1x64d_os32",
    "resnest50_fast_4s2x40d_os8",
    "resnest50_fast_1s4x24d_os8",
]


def small_resnest(**kwargs) -> ResNeSt:
    """A full-width but shallow network with random statistics and small outputs."""
    torch.manual_seed(0)
    model = ResNeSt(**{"arch": "resnest14", **kwargs})
    randomise(model)
    return model


def randomise(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        draw(name, tensor)


def published_network(name: str, output_stride: int) -> nn.Module:
    """The authors' network from their package."""
    authors = pytest.importorskip("resnest.torch")
    dilation = {8: dict(dilated=True), 16: dict(dilation=2), 32: {}}[output_stride]
    return getattr(authors, name)(pretrained=False, **dilation)


def published_stages(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    stages = []
    for index in range(1, 5):
        x = getattr(network, f"layer{index}")(x)
        stages.append(x)
    return stages


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameter_counts_are_the_published_ones(arch):
    with torch.device("meta"):
        model = ResNeSt(arch)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_backbones(case, golden):
    entry = golden.manifest[case]
    state_dict, images, outputs = golden.load_case(case)
    state_dict = {k: torch.from_numpy(np.asarray(v)) for k, v in state_dict.items()}
    weight, bias = state_dict.pop("fc.weight"), state_dict.pop("fc.bias")
    with torch.device("meta"):
        model = ResNeSt(entry["arch"], output_stride=entry["output_stride"])
    model.load_state_dict(state_dict, assign=True)
    with torch.no_grad():
        stages = model.eval()(torch.from_numpy(images))
        logits = nn.functional.linear(stages[-1].mean((2, 3)), weight, bias)
    for index, stage in enumerate(stages, 1):
        expected = torch.from_numpy(outputs[f"c{index}"])
        assert relative_error(stage[:, :: stage.shape[1] // 16], expected) <= 1e-5
    assert relative_error(logits, torch.from_numpy(outputs["imagenet_logits"])) <= 1e-5


def backward_both(ours, theirs, names, images):
    """Stages and gradients of both networks in training mode; ``names`` maps ours to theirs."""
    expected, actual = theirs(images), ours(images)
    weights = [torch.randn_like(stage) for stage in expected]
    for stages in (expected, actual):
        sum((s * w).mean() for s, w in zip(stages, weights, strict=True)).backward()
    stage_error = max(relative_error(a, e) for a, e in zip(actual, expected, strict=True))
    parameters, buffers = dict(theirs.named_parameters()), dict(theirs.named_buffers())
    gradient_error = max(
        float((p.grad - parameters[names[n]].grad).norm() / parameters[names[n]].grad.norm())
        for n, p in ours.named_parameters()
    )
    buffer_error = max(
        relative_error(b.double(), buffers[names[n]].double()) for n, b in ours.named_buffers()
    )
    return stage_error, gradient_error, buffer_error


@pytest.mark.parametrize("arch", [
    pytest.param(name, marks=() if name in OFTEN else pytest.mark.long) for name in PACKAGE_MODELS
])  # fmt: skip
def test_equal_to_the_authors_package_with_gradients(arch):
    """In training mode: stages, running statistics and every parameter's gradient."""
    deep = arch in ("resnest200", "resnest269")
    dtype, output_stride = (torch.float32, 16) if deep else (torch.float64, 8)
    tolerance = 1e-4 if deep else 1e-9
    torch.manual_seed(0)
    theirs = published_network(arch, output_stride)
    randomise(theirs)
    theirs.forward = lambda images: published_stages(theirs, images)
    with torch.device("meta"):
        ours = ResNeSt(arch, output_stride=output_stride)
    state = {k: v.clone() for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(state, assign=True)
    for parameter in ours.parameters():
        parameter.requires_grad_()
    names = {k: k for k in state}
    images = torch.randn(2, 3, 25, 33, dtype=dtype)
    errors = backward_both(ours.to(dtype).train(), theirs.to(dtype).train(), names, images)
    del theirs.forward  # the circle would keep a gigabyte until garbage is next searched for
    assert errors[0] < tolerance and errors[2] < tolerance
    assert errors[1] < 100 * tolerance


def stock_network(depth: int, stem: int, output_stride: int) -> StockResNeSt:
    strides = {8: (1, 2, 1, 1), 16: (1, 2, 2, 1), 32: (1, 2, 2, 2)}[output_stride]
    dilations = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1, 1, 1, 1)}[output_stride]
    return StockResNeSt(
        depth=depth,
        stem_channels=stem,
        radix=2,
        reduction_factor=4,
        avg_down_stride=True,
        strides=strides,
        dilations=dilations,
        contract_dilation=True,
        norm_cfg=dict(type="BN"),
    )


@pytest.mark.parametrize(("depth", "stem", "output_stride"),
                         [(50, 64, 8), pytest.param(50, 64, 16, marks=pytest.mark.long),
                          (50, 64, 32), pytest.param(101, 128, 8, marks=pytest.mark.long)],
                         )  # fmt: skip
def test_variant_is_equal_to_the_stacks_resnest_with_gradients(depth, stem, output_stride):
    torch.manual_seed(0)
    theirs = stock_network(depth, stem, output_stride)
    ours = ResNeSt(f"resnest{depth}", output_stride=output_stride, avd_in_dilated=False)
    randomise(ours)
    names = {
        key: key.replace("conv1.", "stem.", 1)
        if key.startswith("conv1.")
        else key.replace("bn1.", "stem.7.", 1)
        if key.startswith("bn1.")
        else key
        for key in ours.state_dict()
    }
    theirs.load_state_dict({names[k]: v for k, v in ours.state_dict().items()})
    theirs.double().train()  # returns None
    images = torch.randn(2, 3, 33, 49, dtype=torch.float64)
    errors = backward_both(ours.double().train(), theirs, names, images)
    assert errors[0] < 1e-9 and errors[2] < 1e-9 and errors[1] < 1e-7


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    batch=st.integers(1, 2),
    output_stride=st.sampled_from([8, 16, 32]),
)
def test_shapes_of_any_image(height, width, batch, output_stride):
    with torch.device("meta"):
        model = ResNeSt("resnest26", output_stride=output_stride).eval()
        outputs = model(torch.empty(batch, 3, height, width))
    for stage, output in enumerate(outputs):
        expected = [height, width]
        for _ in range(2 + min(stage, {8: 1, 16: 2, 32: 3}[output_stride])):
            expected = [(side + 1) // 2 for side in expected]
        assert output.shape == (batch, 256 * 2**stage, *expected)


def test_arch_as_a_mapping_and_its_defaults():
    with torch.device("meta"):
        named = ResNeSt("resnest26")
        mapped = ResNeSt(dict(blocks=[2, 2, 2, 2], radix=2, groups=1, base_width=64,
                              stem_width=32, avd_first=False))  # fmt: skip
        short = ResNeSt(dict(blocks=(2, 2, 2, 2)))
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (named, mapped, short)]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("out_indices", [(0,), (1, 2), (3,), (0, 1, 2, 3)])
def test_out_indices_pick_stages(out_indices):
    full, part = small_resnest(), small_resnest(out_indices=out_indices)
    part.load_state_dict(full.state_dict())  # stages that are not built are left out
    images = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        everything, picked = full.eval()(images), part.eval()(images)
    assert len(picked) == len(out_indices)
    for index, output in zip(out_indices, picked, strict=True):
        assert torch.equal(output, everything[index])


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2, 4])
def test_frozen_stages_do_not_move(frozen_stages):
    model = small_resnest(frozen_stages=frozen_stages)
    before = copy.deepcopy(model.state_dict())
    assert model.train() is model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad] or
                                [nn.Parameter(torch.zeros(1))], lr=0.1)  # fmt: skip
    outputs = model(torch.randn(2, 3, 32, 32))
    loss = sum(o.square().mean() for o in outputs)
    if loss.requires_grad:
        loss.backward()
        optimizer.step()
    groups = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4}
    for key, value in model.state_dict().items():
        if key.split(".")[0] in groups and groups[key.split(".")[0]] <= frozen_stages:
            assert torch.equal(value, before[key]), key
    moved = {
        groups[key.split(".")[0]]
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert moved == set(range(max(frozen_stages + 1, 0), 5))


def test_modes_return_self_and_norm_eval_keeps_statistics():
    model = small_resnest(norm_eval=True)
    assert model.train() is model and model.eval() is model
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    model(torch.randn(2, 3, 32, 32))
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value)
    assert model.layer3[0].training


@pytest.mark.parametrize("dropblock_prob", [0.0, 0.2])
def test_checkpointing_changes_neither_gradients_nor_statistics(dropblock_prob):
    results = []
    for with_cp in (False, True):
        model = small_resnest(with_cp=with_cp, dropblock_prob=dropblock_prob).train()
        torch.manual_seed(3)
        images = torch.randn(2, 3, 48, 48, requires_grad=True)
        torch.manual_seed(4)
        sum(o.square().mean() for o in model(images)).backward()
        results.append((model, images.grad))
    (plain, plain_grad), (saved, saved_grad) = results
    assert torch.equal(plain_grad, saved_grad)
    for (name, a), b in zip(plain.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for key, value in plain.state_dict().items():
        assert torch.equal(value, saved.state_dict()[key]), key


def test_checkpointing_stores_less():
    def stored(with_cp: bool) -> int:
        model = small_resnest(with_cp=with_cp).train()
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.randn(2, 3, 64, 64))
        return sum(sizes.values())

    assert stored(True) < 0.5 * stored(False)


def test_init_is_the_published_one():
    torch.manual_seed(0)
    model = ResNeSt("resnest50_fast_4s2x40d")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert float(module.weight.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name


class TestVariants:
    """What holds for every variant of the network."""

    @pytest.fixture(
        scope="class",
        params=[
            dict(),
            dict(arch=dict(blocks=(1, 1, 1, 1), radix=1, avd_first=True), output_stride=32),
            dict(arch=dict(blocks=(1, 1, 1, 1), radix=4, groups=2, base_width=40)),
            dict(norm_cfg=dict(type="SyncBN"), avd_in_dilated=False, output_stride=16),
            dict(norm_cfg=dict(type="GN", num_groups=16)),
        ],
        ids=str,
    )
    def model(self, request):
        return small_resnest(**request.param)

    def check(self, outputs, expected, tolerance):
        for a, e in zip(outputs, expected, strict=True):
            assert relative_error(a.float(), e) < tolerance

    @pytest.fixture(scope="class")
    def images(self):
        return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def test_low_precision(self, model, images):
        images = images[:1, :, :32, :32]
        expected = model.eval()(images)
        for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.06)):
            self.check(copy.deepcopy(model).to(dtype)(images.to(dtype)), expected, tolerance)
        with torch.autocast("cpu", torch.bfloat16):
            self.check(model(images), expected, 0.06)

    @torch.no_grad()
    def test_trace(self, model, images):
        traced = torch.jit.trace(model.eval(), images)
        self.check(traced(images[:1]), model(images[:1]), 1e-5)

    def test_training(self, model, images):
        model.train()
        sum(o.mean() for o in model(images)).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        # the gate must still depend on the image
        assert model.layer1[0].conv2.fc1.weight.grad.abs().max() > 0


def test_export():
    model = small_resnest().eval()
    batch, height = torch.export.Dim("batch", max=64), torch.export.Dim("height", min=2, max=64)
    shapes = ({0: batch, 2: 32 * height},)
    with torch.no_grad():
        exported = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=shapes)
        images = torch.randn(3, 3, 96, 64)
        for a, e in zip(exported.module()(images), model(images), strict=True):
            assert relative_error(a, e) < 1e-5


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="compiles on Linux only")
def test_compile_captures_one_graph():
    """The whole network is one graph (no compiler is needed for this backend)."""
    model = small_resnest()
    for mode in (model.eval(), model.train()):
        compiled = torch.compile(mode, backend="aot_eager", fullgraph=True)
        reference = copy.deepcopy(mode)
        images = torch.randn(2, 3, 32, 32)
        for a, e in zip(compiled(images), reference(images), strict=True):
            assert relative_error(a, e) < 1e-4
        torch._dynamo.reset()


def test_dropblock_only_in_the_last_two_stages_and_in_training():
    model = small_resnest(dropblock_prob=0.1)
    stages = {n.split(".")[0] for n, m in model.named_modules() if isinstance(m, DropBlock2d)}
    assert stages == {"layer3", "layer4"}
    plain = small_resnest()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(model.eval()(images), plain.eval()(images), strict=True):
            assert torch.equal(a, b)
        dropped, kept = model.train()(images), plain.train()(images)
    assert torch.equal(dropped[1], kept[1]) and not torch.equal(dropped[2], kept[2])


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(1, 7),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    prob=st.floats(0.02, 0.3),
)
def test_dropblock_drops_whole_blocks(size, height, width, prob):
    layer = DropBlock2d(prob, size).train()
    torch.manual_seed(0)
    x = torch.ones(2, 3, height, width)
    out = layer(x)
    dropped = (out == 0).float()
    assert out.sum().item() == pytest.approx(x.numel() if dropped.mean() < 1 else 0, rel=1e-4)
    block = min(size, height, width)
    # every dropped pixel lies in a dropped block: opening the mask with a block changes nothing
    whole = nn.functional.avg_pool2d(dropped, block, stride=1) > 1 - 1e-6
    margin = block - 1
    opened = nn.functional.max_pool2d(nn.functional.pad(whole.float(), (margin,) * 4), block, 1)
    assert torch.equal(opened, dropped)


def test_dropblock_drops_the_asked_share():
    torch.manual_seed(0)
    for prob in (0.05, 0.1, 0.2):
        share = (DropBlock2d(prob, 3).train()(torch.ones(16, 64, 30, 30)) == 0).float().mean()
        # overlapping blocks make it a little less (algorithm 1 counts them apart)
        assert 0.85 * prob < share <= 1.02 * prob


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        (dict(arch="resnest51"), "arch"),
        (dict(arch=50), "arch"),
        (dict(arch=dict(radix=2)), "arch.blocks"),
        (dict(arch=dict(blocks=(1, 1, 1, 1), width=3)), "arch.width"),
        (dict(arch=dict(blocks=(1, 1, 1))), "arch.blocks"),
        (dict(arch=dict(blocks=(1, 1, 1, 1), radix=0)), "arch.radix"),
        (dict(output_stride=4), "output_stride"),
        (dict(out_indices=(4,)), "out_indices"),
        (dict(out_indices=()), "out_indices"),
        (dict(frozen_stages=5), "frozen_stages"),
        (dict(norm_cfg=dict(type="BatchNorm")), "norm_cfg"),
        (dict(norm_cfg=dict(type="GN", num_groups=48)), "num_groups"),
        (dict(dropblock_prob=1.0), "dropblock_prob"),
        (dict(dropblock_prob=0.1, dropblock_size=0), "dropblock_size"),
    ],
)
def test_bad_arguments_are_named(kwargs, named):
    with raises_user_error("argument", named), torch.device("meta"):
        ResNeSt(**kwargs)
