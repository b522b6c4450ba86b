# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The classifier: sizes and logits of the published ones, and checkpoints of every layout."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from advice import advises
from published_reference import draw
from test_resnest import OFTEN, PACKAGE_MODELS
from tiny_models import relative_error, tiny_config
from torch import nn
from user_errors import raises_user_error

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "weights"))

from weight_names import mmpretrain_name, openmmlab_name, to_gluon

from mmseg_resnest.models import ARCHITECTURES, ResNeSt
from mmseg_resnest.registry import MODELS
from mmseg_resnest.weights import (
    convert_state_dict,
    export_state_dict,
    load_backbone,
    load_into,
    save_state_dict,
)

PARAMETERS = {
    "resnest14": 10_611_688,
    "resnest26": 17_069_448,
    "resnest50": 27_483_240,
    "resnest101": 48_275_016,
    "resnest200": 70_201_544,
    "resnest269": 110_929_480,
    "resnest50_fast_1s1x64d": 26_217_896,
    "resnest50_fast_2s1x64d": 27_483_240,
    "resnest50_fast_4s1x64d": 31_912_712,
    "resnest50_fast_1s2x40d": 25_946_680,
    "resnest50_fast_2s2x40d": 26_943_792,
    "resnest50_fast_4s2x40d": 30_417_592,
    "resnest50_fast_1s4x24d": 25_677_000,
}


def drawn(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with numbers that its names decide."""
    model.to_empty(device="cpu")
    for name, tensor in model.state_dict().items():
        draw(name, tensor)
    return model.eval()


def empty(**options: object) -> ResNeSt:
    with torch.device("meta"):
        return ResNeSt(**options)


@pytest.fixture(scope="module")
def small() -> ResNeSt:
    return drawn(empty(arch="resnest14", num_classes=7))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 65, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameter_counts_are_the_published_ones(arch: str) -> None:
    model = empty(arch=arch, num_classes=1000)
    assert model.output_stride == 32  # as published for ImageNet
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("arch", [
    pytest.param(name, marks=() if name in (*OFTEN, "resnest269") else pytest.mark.long)
    for name in PACKAGE_MODELS
])  # fmt: skip
def test_logits_are_those_of_the_authors_package(arch: str, images: torch.Tensor) -> None:
    authors = pytest.importorskip("resnest.torch")
    with torch.device("meta"):
        theirs = getattr(authors, arch)(pretrained=False)
    drawn(theirs)
    ours = empty(arch=arch, num_classes=1000)
    state_dict = convert_state_dict(theirs.state_dict(), classifier=True)
    ours.load_state_dict(state_dict, assign=True)
    with torch.no_grad():
        assert relative_error(ours.eval()(images), theirs(images)) <= 1e-5


@pytest.mark.parametrize(
    "case", ["resnest50_os32", "resnest101_os32", "resnest50_fast_2s1x64d_os32"]
)
def test_golden_logits(case: str, golden) -> None:
    state_dict, pixels, outputs = golden.load_case(case)
    model = empty(arch=golden.manifest[case]["arch"], num_classes=1000)
    state_dict = {k: torch.from_numpy(np.asarray(v)) for k, v in state_dict.items()}
    model.load_state_dict(convert_state_dict(state_dict, classifier=True), assign=True)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(pixels))
    assert relative_error(logits, torch.from_numpy(outputs["imagenet_logits"])) <= 1e-5


LAYOUTS = {
    "published": lambda tensors: tensors,  # and timm: its names are the same
    "wrapped": lambda tensors: {"state_dict": {f"module.{k}": v for k, v in tensors.items()}},
    "gluoncv": to_gluon,
    "mmpretrain": lambda tensors: {mmpretrain_name(k): v for k, v in tensors.items()},
    "mmpretrain, one stem": lambda tensors: {
        f"head.{k}" if k[:3] == "fc." else f"backbone.{openmmlab_name(k)}": v
        for k, v in tensors.items()
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_loads_whole(
    layout: str, small: ResNeSt, images: torch.Tensor, tmp_path: Path
) -> None:
    """From a state dict and from a file, through ``init_cfg`` as well; a backbone leaves it out."""
    source = LAYOUTS[layout](small.state_dict())
    file = tmp_path / "weights.pth"
    torch.save(source, file)
    with torch.no_grad():
        expected = small(images)
        for way in ("load_into", "load_backbone", "init_cfg"):
            init = dict(type="Pretrained", checkpoint=str(file)) if way == "init_cfg" else None
            model = ResNeSt("resnest14", num_classes=7, init_cfg=init).eval()
            if way == "load_into":
                load_into(model, source)
            elif way == "load_backbone":
                load_backbone(model, file)
            else:
                model.init_weights()
            assert torch.equal(model(images), expected)
        backbone = ResNeSt("resnest14", output_stride=32).eval()
        load_backbone(backbone, file)
        for ours, theirs in zip(backbone(images), small.features(images), strict=True):
            assert torch.equal(ours, theirs)
    assert "fc.weight" not in convert_state_dict(source)


def test_the_classifier_is_exported(small: ResNeSt) -> None:
    for layout in ("published", "timm", "mmseg-resnest"):
        assert list(export_state_dict(small.state_dict(), layout)) == list(small.state_dict())
    assert not any("fc." in k[:3] for k in export_state_dict(small.state_dict(), "openmmlab"))


def test_weights_without_the_models_classes_are_refused(small: ResNeSt, tmp_path: Path) -> None:
    file = tmp_path / "backbone.safetensors"
    save_state_dict(convert_state_dict(small.state_dict()), file)
    for classes, path in ((7, file), (8, tmp_path / "whole.safetensors")):
        if classes == 8:
            save_state_dict(dict(small.state_dict()), path)
        model = ResNeSt("resnest14", num_classes=classes)
        with raises_user_error("checkpoint", path.name) as caught:
            load_backbone(model, path)
        assert "fc.weight" in caught.value.message and "layer1" not in caught.value.message


def test_the_backbone_is_the_same_with_and_without() -> None:
    torch.manual_seed(0)
    backbone = ResNeSt("resnest14", output_stride=32).state_dict()
    torch.manual_seed(0)
    whole = ResNeSt("resnest14", num_classes=3).state_dict()
    assert list(whole) == [*backbone, "fc.weight", "fc.bias"]
    assert all(torch.equal(whole[name], tensor) for name, tensor in backbone.items())


def test_dropout_is_before_the_linear_layer_and_in_training() -> None:
    model = drawn(empty(arch="resnest14", num_classes=5, dropout=0.2, norm_eval=True))
    seen: list[torch.Tensor] = []
    model.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model(pixels)
        torch.manual_seed(0)
        model.train()(pixels)
    kept, dropped = seen
    share = float((dropped[kept != 0] == 0).float().mean())
    assert 0.15 < share < 0.25
    assert torch.allclose(dropped[dropped != 0], (kept / 0.8)[dropped != 0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(num_classes=0), "num_classes"),
        (dict(num_classes="1000"), "num_classes"),
        (dict(num_classes=10, out_indices=(0, 1, 2)), "out_indices"),
        (dict(num_classes=10, dropout=1.0), "dropout"),
    ],
)
def test_bad_arguments_are_named(options: dict, named: str) -> None:
    with raises_user_error("argument", named):
        empty(**options)


def test_a_classifier_is_no_backbone_of_a_segmentor() -> None:
    backbone = dict(type="ResNeSt", arch="resnest14", num_classes=1000)
    with torch.device("meta"):
        with advises("models/segmentor.py:__init__", "remove it", "of the heads") as told:
            MODELS.build(tiny_config(backbone=dict(backbone)))
        assert told.value.code == "config-conflict"
        del backbone["num_classes"]
        MODELS.build(tiny_config(backbone=backbone))
