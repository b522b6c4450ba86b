# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""State dicts into models: strictly, or with one clear list of what does not fit."""

from __future__ import annotations

from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODEL_WRAPPERS
from torch import nn
from user_errors import raises_user_error

from mmseg_resnest.registry import MODELS
from mmseg_resnest.weights import convert_state_dict, export_state_dict, load_into

ROOT = Path(__file__).parents[2]
HEAD = dict(type="PublishedFCNHead", num_convs=1, concat_input=False, norm_cfg=dict(type="BN"))


def segmentor(num_classes=4, arch="resnest14", auxiliary=True) -> nn.Module:
    config = dict(
        type="EncoderDecoder",
        backbone=dict(type="ResNeSt", arch=arch, norm_cfg=dict(type="BN")),
        decode_head=dict(**HEAD, in_channels=2048, channels=8, in_index=3, num_classes=num_classes),
        test_cfg=dict(mode="whole"),
    )
    if auxiliary:
        config["auxiliary_head"] = dict(
            **HEAD, in_channels=1024, channels=8, in_index=2, num_classes=num_classes
        )
    return MODELS.build(config)


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(1)
    return {
        key: torch.rand_like(value) if value.is_floating_point() else torch.tensor(3)
        for key, value in segmentor().state_dict().items()
    }


@pytest.fixture
def model():
    return segmentor()


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_holds(model, weights):
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize("layout", ["ours", "published", "openmmlab"])
def test_in_any_layout(model, weights, layout):
    source = weights if layout == "ours" else export_state_dict(weights, layout)
    load_into(model, source)
    assert_holds(model, weights)


def test_wrapped_model(model, weights):
    @MODEL_WRAPPERS.register_module(force=True)
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    load_into(Wrapper(model), weights)
    assert_holds(model, weights)


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(model, weights):
    wrong = dict(weights)
    del wrong["decode_head.convs.0.bn.running_mean"]
    wrong["decode_head.other.weight"] = torch.zeros(1)
    wrong["backbone.bn1.weight"] = torch.zeros(7)
    before = snapshot(model)
    with raises_user_error("checkpoint", "folder/w.pth") as caught:
        load_into(model, wrong, source="folder/w.pth")
    for key in ("decode_head.convs.0.bn.running_mean", "decode_head.other.weight"):
        assert key in caught.value.message
    assert "backbone.bn1.weight ([7], the model has [64])" in caught.value.message
    assert_holds(model, before)


@pytest.mark.parametrize("kind", ["no auxiliary head", "a backbone", "another network"])
def test_another_model(model, weights, kind):
    if kind == "no auxiliary head":
        model, named = segmentor(auxiliary=False), "auxiliary_head.conv_seg.weight"
    elif kind == "a backbone":
        weights = {k[9:]: v for k, v in weights.items() if k.startswith("backbone.")}
        named = "backbone.conv1.0.weight"
    else:
        weights = {"features.weight": torch.zeros(1)}
        named = "features.weight"
    with raises_user_error("checkpoint", "the checkpoint") as caught:
        load_into(model, weights)
    assert named in caught.value.message


def test_other_classes(weights):
    model = segmentor(num_classes=9)
    before = snapshot(model)
    with raises_user_error("checkpoint") as caught:
        load_into(model, weights)
    assert "4 classes" in caught.value.message and "9" in caught.value.message
    assert_holds(model, before)


# --- MMSegmentation's checkpoints -----------------------------------------------------------


def zoo_configs() -> dict[str, Path]:
    """The stack's own configs of its eight ResNeSt models."""
    folder = Path(mmseg.__file__).parent / ".mim" / "configs" / "resnest"
    return {path.stem: path for path in sorted(folder.glob("resnest_*.py"))}


@pytest.mark.skipif(not zoo_configs(), reason="the stack was installed without its configs")
def test_the_zoos_names_are_those_of_our_configs():
    assert len(zoo_configs()) == 8
    for name, path in zoo_configs().items():
        if "cityscapes" in name and "fcn" not in name:
            continue  # only the number of classes differs from ADE20K
        theirs = Config.fromfile(path).model
        theirs.pop("pretrained")
        theirs.type = "mmseg.EncoderDecoder"
        theirs.backbone.type = "mmseg.ResNeSt"
        ours = Config.fromfile(ROOT / "configs" / "openmmlab" / f"{name}.py").model
        states = []
        for config in (theirs, ours):
            config.pop("data_preprocessor")
            with torch.device("meta"):
                model = MODELS.build(config)
            states.append({k: tuple(v.shape) for k, v in model.state_dict().items()})
        source = {key: torch.zeros(()).expand(shape) for key, shape in states[0].items()}
        converted = convert_state_dict(source)
        assert {key: tuple(v.shape) for key, v in converted.items()} == states[1], name
        assert set(export_state_dict(converted, "openmmlab")) == set(source)


def fcn(backbone: dict) -> nn.Module:
    head = dict(type="mmseg.FCNHead", num_classes=5, norm_cfg=dict(type="BN"), dropout_ratio=0)
    return MODELS.build(
        dict(
            type="mmseg.EncoderDecoder",
            backbone=dict(**backbone, norm_cfg=dict(type="BN")),
            decode_head=dict(**head, in_channels=2048, in_index=3, channels=16),
            auxiliary_head=dict(
                **head, in_channels=1024, in_index=2, channels=8, num_convs=1, concat_input=False
            ),
            test_cfg=dict(mode="whole"),
        )
    ).eval()


def test_the_stacks_checkpoint_gives_what_the_stack_gives():
    torch.manual_seed(2)
    theirs = fcn(
        dict(
            type="mmseg.ResNeSt",
            depth=50,
            stem_channels=64,
            radix=2,
            avg_down_stride=True,
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            contract_dilation=True,
        )
    )
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            leaf = key.rpartition(".")[2]
            if leaf == "running_var":
                value.uniform_(0.5, 1.5)
            elif leaf in ("running_mean", "bias"):
                value.normal_(0, 0.1)
            elif value.ndim == 1:
                value.uniform_(0.2, 0.6)
    ours = fcn(dict(type="mmseg_resnest.ResNeSt", arch="resnest50", avd_in_dilated=False))
    load_into(ours, theirs.state_dict())
    assert_holds(ours, convert_state_dict(theirs.state_dict()))
    image = torch.randn(1, 3, 49, 65)
    with torch.no_grad():
        wanted = theirs.encode_decode(image, [dict(img_shape=(49, 65))])
        found = ours.encode_decode(image, [dict(img_shape=(49, 65))])
    assert torch.isfinite(wanted).all()
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    back = export_state_dict(ours.state_dict(), "openmmlab")
    assert set(back) == set(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(back[key], value)
