# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Weights of a part of a model, under any prefix: what fits is loaded and counted, or refused."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from user_errors import raises_user_error

from mmseg_resnest.engine.checkpoint import load_weights
from mmseg_resnest.models.pretrained import check_pretrained
from mmseg_resnest.registry import MODELS
from mmseg_resnest.weights import export_state_dict

NORM = dict(type="BN")
BACKBONES: dict[str, dict[str, Any]] = {
    "ResNeSt": dict(
        type="ResNeSt", arch=dict(blocks=(1, 1, 1, 1), base_width=4, stem_width=4), norm_cfg=NORM
    ),
    "ResNet": dict(
        type="ResNetV1c", depth=18, base_channels=4, stem_channels=4, norm_cfg=NORM,
        strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1),
    ),
    "MiT": dict(
        type="MixVisionTransformer", embed_dims=4, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]
    ),
}  # fmt: skip
CHANNELS = {"ResNeSt": 2048, "ResNet": 32, "MiT": 4}


def build(
    backbone: str = "ResNet", classes: int = 3, auxiliary: bool = True, **options: Any
) -> nn.Module:
    def head(convs: int) -> dict[str, Any]:
        return dict(
            type="FCNHead", in_channels=CHANNELS[backbone], in_index=3, channels=4,
            num_convs=convs, concat_input=False, norm_cfg=NORM, num_classes=classes,
        )  # fmt: skip

    config = dict(
        type="EncoderDecoder",
        backbone=dict(copy.deepcopy(BACKBONES[backbone]), **options.pop("of_backbone", {})),
        decode_head=head(2),
        **options,
    )
    if auxiliary:
        config["auxiliary_head"] = head(1)
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        return MODELS.build(config)


@pytest.fixture(scope="module", params=BACKBONES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def source(kind: str) -> dict[str, Tensor]:
    """A whole model's weights, none of which a new model has."""
    return filled(build(kind))


def filled(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(value.shape, generator=generator) + 1
        if value.is_floating_point()
        else torch.full_like(value, 7)
        for key, value in model.state_dict().items()
    }


def only(state: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key.startswith(parts)}


def without(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def assert_loaded(model: nn.Module, before: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """These tensors, and no others."""
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key] if key in expected else before[key]), key


def parameters(model: nn.Module, names: Any) -> int:
    return sum(p.numel() for key, p in model.named_parameters() if key in names)


def said_numbers(text: str) -> tuple[int, int]:
    found = re.search(r"([\d,]+) of ([\d,]+) parameters", text)
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


PARTS = {
    "everything": ("",),
    "backbone and head": ("backbone.", "decode_head."),
    "backbone": ("backbone.",),
    "heads": ("decode_head.", "auxiliary_head."),
    "head": ("decode_head.",),
}
PREFIXES = ["", "module._orig_mod.", "model.", "net.segmentor."]


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda prefix: prefix or "no prefix")
@pytest.mark.parametrize("part", PARTS)
def test_load_from(
    part: str, prefix: str, kind: str, source: dict[str, Tensor], tmp_path: Path
) -> None:
    expected = only(source, *PARTS[part])
    state: Any = under(prefix, expected)
    if prefix != "model.":
        state = {"state_dict": state, "meta": {}}
    torch.save(state, tmp_path / "w.pth")
    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    checked = load_weights(model, tmp_path / "w.pth", start_training=True, check_only=True)
    assert_loaded(model, before, {})
    said = load_weights(model, tmp_path / "w.pth", start_training=True)
    assert said == checked
    assert_loaded(model, before, expected)
    total = parameters(model, dict(model.named_parameters()))
    assert said_numbers(said) == (parameters(model, expected), total)
    for name in ("backbone", "decode_head", "auxiliary_head"):
        assert (name in said.partition(" from ")[0]) is not any(
            k.startswith(name) for k in expected
        )


@pytest.mark.parametrize(
    "prefix", ["", "encoder.", "module.encoder.", "backbone.", "model.backbone."]
)
@pytest.mark.parametrize("classifier", [False, True])
def test_a_backbone_under_any_name(
    prefix: str, classifier: bool, kind: str, source: dict[str, Tensor], tmp_path: Path
) -> None:
    expected = only(source, "backbone.")
    bare = without("backbone.", expected)
    state = under(prefix, bare)
    if classifier:
        state |= {"head.fc.weight": torch.zeros(9, 4), f"{prefix}fc.bias": torch.zeros(9)}
    torch.save(state, tmp_path / "w.pth")

    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    said = load_weights(model, tmp_path / "w.pth", start_training=True)
    assert_loaded(model, before, expected)
    assert said_numbers(said)[0] == parameters(model, expected)
    assert ("fc.bias" in said) is classifier

    # The same by init_cfg, of the backbone and of the whole model.
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    more = [dict(init)]
    if prefix and not classifier:
        more += [dict(init, prefix=prefix), dict(init, prefix=prefix.removesuffix("."))]
        more = [one for one in more if not prefix.startswith("module.") or "prefix" not in one]
    for one in more:
        model = build(kind, of_backbone=dict(init_cfg=one))
        initialise(model.backbone)
        assert_loaded(model.backbone, {}, bare)


def initialise(module: nn.Module) -> None:
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        module.init_weights()


def test_a_whole_model_by_init_cfg(kind: str, source: dict[str, Tensor], tmp_path: Path) -> None:
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    for prefix in ("", "model."):
        torch.save(under(prefix, only(source, "backbone.", "decode_head.")), tmp_path / "w.pth")
        model = build(kind, init_cfg=init)
        initialise(model)
        for key, value in only(source, "backbone.", "decode_head.").items():
            assert torch.equal(model.state_dict()[key], value), key
    # A head alone, and a backbone of a whole model's file.
    torch.save(source, tmp_path / "w.pth")
    model = build(kind, of_backbone=dict(init_cfg=init))
    initialise(model.backbone)
    assert_loaded(model.backbone, {}, without("backbone.", only(source, "backbone.")))


def test_other_classes(kind: str, source: dict[str, Tensor]) -> None:
    """The last layers stay; one line names them."""
    model = build(kind, classes=5)
    before = copy.deepcopy(model.state_dict())
    said = load_weights(model, under("model.", source), start_training=True)
    expected = {key: value for key, value in source.items() if "conv_seg" not in key}
    assert_loaded(model, before, expected)
    assert "decode_head.conv_seg.weight" in said and "\n" not in said
    assert said_numbers(said)[0] == parameters(model, expected)


def refused(model: nn.Module, state: dict[str, Tensor], named: str) -> None:
    before = copy.deepcopy(model.state_dict())
    with raises_user_error("checkpoint", "w.pth") as caught:
        load_weights(model, state, start_training=True, name="w.pth")
    assert named in caught.value.message
    assert_loaded(model, before, {})


def test_what_does_not_fit(kind: str, source: dict[str, Tensor]) -> None:
    model = build(kind)
    refused(model, {"some.other.weight": torch.zeros(3)}, "some.other.weight")
    last = [k for k in only(source, "backbone.") if k.endswith("weight")][-1]
    refused(model, {key: v for key, v in source.items() if key != last}, last)
    refused(model, source | {last: torch.zeros(3, 3)}, last)
    refused(model, only(source, "decode_head.conv_seg"), "decode_head.convs.0")
    deeper = {f"{last.rsplit('.', 2)[0]}.new.weight": torch.zeros(1)}
    refused(model, source | deeper, next(iter(deeper)))


def test_the_backbone_alone_as_the_refusal_advises(tmp_path: Path) -> None:
    """Of a file whose head is another one."""
    state = filled(build())
    state["decode_head.more.weight"] = state.pop("decode_head.convs.0.conv.weight")
    path = tmp_path / "w.pth"
    torch.save(under("model.", state), path)
    with raises_user_error("checkpoint", "w.pth") as caught:
        load_weights(build(), path, start_training=True)
    advised = re.search(r"model\.backbone\.init_cfg=(dict\(.*?\))", caught.value.message)
    model = build(of_backbone=dict(init_cfg=eval(advised[1], {"dict": dict})))
    initialise(model.backbone)
    assert_loaded(model.backbone, {}, without("backbone.", only(state, "backbone.")))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: {"unknown.weight": torch.zeros(2)}, "unknown.weight"),
        (lambda s: s | {"layer1.0.conv1.weight": torch.zeros(9)}, "layer1.0.conv1.weight"),
        (lambda s: only(s, "stem."), "layer1"),
    ],
    ids=["nothing", "another shape", "too little"],
)
def test_init_cfg_refuses(change: Any, named: str, tmp_path: Path) -> None:
    state = without("backbone.", only(filled(build()), "backbone."))
    torch.save(change(state), tmp_path / "w.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    with raises_user_error("checkpoint", "w.pth") as caught:
        initialise(build(of_backbone=dict(init_cfg=init)).backbone)
    assert named in caught.value.message
    with raises_user_error("checkpoint", "w.pth") as caught:
        initialise(build(of_backbone=dict(init_cfg=dict(init, prefix="nope"))).backbone)
    assert "remove prefix" in caught.value.message


def test_init_cfg_says_what_it_loads_and_what_stays(tmp_path: Path, logged: list[str]) -> None:
    """As of a network for classification, which lacks some norms and has a classifier."""
    state = without("backbone.", only(filled(build()), "backbone."))
    expected = {key: value for key, value in state.items() if not key.startswith("layer1.1.bn2")}
    torch.save(expected | {"fc.weight": torch.zeros(9, 32)}, tmp_path / "w.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    model = build(of_backbone=dict(init_cfg=init))
    initialise(model.backbone)
    said = next(text for text in logged if "parameters" in text)
    total = parameters(model.backbone, dict(model.backbone.named_parameters()))
    assert said_numbers(said) == (parameters(model.backbone, expected), total)
    assert "layer1.1.bn2.weight" in said and "fc.weight" in said


@pytest.mark.parametrize("layout", ["published", "openmmlab"])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_other_layouts_under_a_prefix(layout: str, prefix: str, tmp_path: Path) -> None:
    state = only(filled(build("ResNeSt")), "backbone.")
    theirs = export_state_dict(without("backbone.", state), layout)
    torch.save(under(prefix, theirs), tmp_path / "w.pth")
    model = build("ResNeSt")
    before = copy.deepcopy(model.state_dict())
    load_weights(model, tmp_path / "w.pth", start_training=True)
    assert_loaded(model, before, state)


def test_evaluation_takes_whole_models_only(kind: str, source: dict[str, Tensor]) -> None:
    model = build(kind)
    for prefix in PREFIXES:
        load_weights(model, under(prefix, source))
        assert_loaded(model, {}, source)
    for part in ("backbone", "heads", "head"):
        with raises_user_error("checkpoint", "w.pth"):
            load_weights(model, only(source, *PARTS[part]), name="w.pth")


SWIN = dict(
    type="SwinTransformer", embed_dims=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1),
    pretrain_img_size=32,
)  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "good"), [("", True), ("backbone.", True), ("module.", True), ("encoder.", False)]
)
def test_modules_that_read_the_file_themselves(prefix: str, good: bool, tmp_path: Path) -> None:
    """What they would pass over in silence is refused before a run."""
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        swin = MODELS.build(dict(SWIN))
        state = filled(swin)
        torch.save(under(prefix, state), tmp_path / "w.pth")
        if good:
            check_pretrained(swin, init)
            model = MODELS.build(dict(SWIN, init_cfg=init))
            model.init_weights()
            assert torch.equal(model.state_dict()["norm3.weight"], state["norm3.weight"])
        else:
            with raises_user_error("checkpoint", "w.pth") as caught:
                check_pretrained(swin, init)
            assert "load_from=" in caught.value.message
