# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""timm's own ResNeSts, where timm is installed: their state dicts load whole, with equal logits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import timm
from published_reference import draw

from mmseg_resnest.datasets.imagenet import normalised
from mmseg_resnest.models import ResNeSt
from mmseg_resnest.weights import catalogue, load_into

ENTRIES = [entry for name, entry in catalogue().items() if name.startswith("timm/")]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_state_dicts_load_whole(entry) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(entry.name.removeprefix("timm/"))
        ours = ResNeSt(entry.arch, num_classes=1000)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "arch"),
    [("resnest14d", "resnest14"), ("resnest50d_4s2x40d", "resnest50_fast_4s2x40d")],
)
def test_logits_are_equal(name: str, arch: str) -> None:
    theirs = timm.create_model(name).eval()
    for key, tensor in theirs.state_dict().items():
        draw(key, tensor)
    ours = ResNeSt(arch, num_classes=1000).eval()
    load_into(ours, theirs.state_dict())
    images = torch.randn(1, 3, 64, 97, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.parametrize("shape", [(500, 375), (300, 451)])
def test_crops_are_timms(entry, shape: tuple[int, int]) -> None:
    """Its evaluation's transform of the same image, with the settings of the model."""
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    from mmseg_resnest.engine.imagenet import crop_of

    image = Image.radial_gradient("L").resize(shape).convert("RGB")
    settings = timm.get_pretrained_cfg(entry.name.removeprefix("timm/")).to_dict()
    expected = create_transform(**resolve_data_config({}, pretrained_cfg=settings))(image)
    assert float((normalised(crop_of(entry)(image)) - expected).abs().max()) < 1e-5
