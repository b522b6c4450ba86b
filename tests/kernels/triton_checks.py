# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The kernels in Triton against plain torch, on a GPU or in Triton's interpreter.

Not collected by name: test_triton_kernels.py runs it in a process of its own, because Triton
decides at its import whether it interprets.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from blocks import block, step
from torch.utils.checkpoint import checkpoint

from mmseg_resnest.kernels import gpu, predict, split_attention, triton_labels
from mmseg_resnest.kernels.predict import Crop, Mirror, Resize
from mmseg_resnest.models import ResNeSt, fold_for_inference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="needs a CUDA device"
)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def _on(monkeypatch):
    """Kernels are used, and a failing one is an error."""
    monkeypatch.setattr(gpu, "_on_gpu", lambda x: True)
    monkeypatch.setattr(predict, "_KERNEL_DEVICES", (DEVICE,))
    monkeypatch.setattr(gpu, "_on", True)

    def fail(reason):
        raise AssertionError(reason)

    monkeypatch.setattr(gpu, "_give_up", fail)
    if INTERPRETED:  # what costs time there is the number of programs, not their size
        monkeypatch.setattr(triton_labels, "_PIXELS", 16)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def plain(monkeypatch):
    """Calls something with the kernels off."""

    def call(f, *args):
        with monkeypatch.context() as patch:
            patch.setattr(gpu, "_on", False)
            return f(*args)

    return call


def _passes(y, g, values, radix):
    """The four passes, one after the other, on the same numbers."""
    shares, d_gap, means, norm = values
    return [
        split_attention.pooled_sums(y, *norm),
        split_attention.weighted_sum(y, shares, *norm, radix),
        split_attention.gradient_sums(g, y, *norm),
        split_attention.gradient(g, d_gap, shares, means, y, *norm),
    ]


# Maps of one tile, of several, and of several parts; channels that fill no tile.
@pytest.mark.parametrize(
    ("layout", "radix", "channels", "size"),
    [
        (LAYOUTS[0], 1, 3, (5, 7)),
        (LAYOUTS[0], 2, 1, (66, 67)),
        (LAYOUTS[0], 3, 67, (1, 2)),
        (LAYOUTS[1], 2, 67, (3, 5)),
        (LAYOUTS[1], 4, 2, (10, 14)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_each_pass_is_the_plain_one(layout, radix, channels, size, dtype, plain):
    draw = torch.Generator().manual_seed(0)

    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape, dtype=wide):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(DEVICE, dtype)

    all_channels = radix * channels
    y = normal(2, all_channels, *size, dtype=dtype).contiguous(memory_format=layout)
    g = normal(2, channels, *size, dtype=dtype)
    g = g.contiguous(memory_format=split_attention._layout(y))
    mean, invstd, weight, bias = normal(4, all_channels)
    values = (
        normal(2, all_channels), normal(2, channels), normal(2, all_channels),
        (mean, invstd.abs(), weight, bias),
    )  # fmt: skip
    results, expected = _passes(y, g, values, radix), plain(_passes, y, g, values, radix)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype)
    for result, reference in zip(results, expected, strict=True):
        assert result.shape == reference.shape and result.dtype == reference.dtype
        # Sums of half precision maps are float32 as well; maps are rounded once.
        rough = result.dtype in (torch.bfloat16, torch.float16)
        limit = (tolerance or 1e-5) if not rough else torch.finfo(dtype).eps
        error = (result.double() - reference.double()).abs().amax()
        assert error <= limit * reference.double().abs().amax()
    assert results[3].stride() == y.stride()
    if dtype == torch.float32 and size == (66, 67):
        for result, again in zip(results, _passes(y, g, values, radix), strict=True):
            assert torch.equal(result, again)


@pytest.mark.parametrize(("radix", "groups"), [(1, 1), (2, 2), (3, 1), (4, 2)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_and_its_gradients(radix, groups, training, layout, plain):
    """In float64: all gradients, and the running statistics, are those of plain autograd."""
    made = block(radix, groups, device=DEVICE).train(training)
    images = torch.randn(2, 24, 5, 6, dtype=torch.float64).to(DEVICE, memory_format=layout)
    other = copy.deepcopy(made)
    expected, result = plain(step, made, images), step(other, images)
    assert expected.keys() == result.keys()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_block_that_is_computed_again(reentrant):
    """Activation checkpointing gives the same gradients."""
    made = block(2, device=DEVICE).eval()
    images = torch.randn(2, 24, 5, 6, dtype=torch.float64, device=DEVICE)
    expected = step(copy.deepcopy(made), images)
    result = step(made, images, lambda x: checkpoint(made, x, use_reentrant=reentrant))
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, msg=name)


def test_mixed_precision(plain):
    """Under autocast: the type of the map, and gradients to the rounding of bfloat16."""
    made = block(2, dtype=torch.float32, device=DEVICE).eval()
    images = torch.randn(2, 24, 5, 6, device=DEVICE)

    def rough(made):
        with torch.autocast(DEVICE, torch.bfloat16):
            return step(made, images)

    expected, result = plain(rough, copy.deepcopy(made)), rough(made)
    assert result["out"].dtype == expected["out"].dtype == torch.bfloat16
    for name, value in expected.items():
        value = value.double()
        assert (result[name].double() - value).norm() <= 0.03 * value.norm(), name


def test_a_folded_network(plain):
    arch = {"blocks": (1, 1, 1, 1), "stem_width": 4, "base_width": 8}
    torch.manual_seed(0)
    model = ResNeSt(arch)
    model.init_weights()
    model = model.eval().to(DEVICE)
    images = torch.randn(1, 3, 33, 47, device=DEVICE)
    with torch.no_grad():
        expected = plain(model, images)
        folded = fold_for_inference(model)(images)
    for feature, reference in zip(folded, expected, strict=True):
        assert (feature - reference).abs().amax() <= 1e-4 * reference.abs().amax()


STEPS = {
    "one enlargement": [Resize((6, 19), False)],
    "two, cropped, mirrored": [
        Resize((13, 25), True), Crop(1, 2, 3, 0), Mirror(1), Resize((5, 18), False),
    ],
    "smaller": [Resize((3, 4), False)],
}  # fmt: skip


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_labels(steps, dtype):
    scores = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = predict.label_map(scores.to(DEVICE), steps)
    expected = predict.plain_label_map(scores.double(), steps)
    assert labels.dtype == torch.int64 and labels.device.type == DEVICE
    assert torch.equal(labels.cpu(), expected)


def test_the_lowest_class_at_a_tie():
    scores = torch.ones(1, 4, 3, 3, device=DEVICE)
    scores[:, 0] = 0
    labels = predict.label_map(scores, [Resize((6, 6), False)])
    assert (labels == 1).all()


def test_a_pixel_made_from_too_many_scores_is_made_by_torch():
    """The middle one of three, by way of two that stand for fifteen places each."""
    steps = [Resize((2, 2), False), Resize((20, 20), False), Resize((3, 3), False)]
    scores = torch.randn(1, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    assert triton_labels.view_labels([(scores.to(DEVICE), steps)]) is None
    labels = predict.label_map(scores.to(DEVICE), steps)
    assert torch.equal(labels.cpu(), predict.plain_label_map(scores.double(), steps))


@pytest.mark.parametrize("softmax", [True, False])
def test_labels_of_several_views(softmax):
    draw = torch.Generator().manual_seed(1)
    size = (5, 18)
    views = [
        (3 * torch.randn(3, 3, 4, generator=draw), [Resize(size, False)]),
        (3 * torch.randn(3, 4, 5, generator=draw),
         [Resize((8, 9), False), Mirror(1), Resize(size, False)]),
    ]  # fmt: skip
    total = 0
    for scores, steps in views:
        scores = scores.double()[None]
        for change in steps:
            scores = change(scores)
        total = total + (scores.softmax(1) if softmax else scores)
    labels = predict.summed_label_map([(s.to(DEVICE), steps) for s, steps in views], softmax)
    assert torch.equal(labels.cpu(), total.argmax(1)[0])
