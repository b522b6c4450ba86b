# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Weights of RGB networks for other numbers of channels: repeated and rescaled, or refused."""

from __future__ import annotations

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
STAGES = dict(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1))
# A small network of each kind of first convolution, and the name of its weight.
STEMS: dict[str, tuple[dict[str, Any], str]] = {
    "ResNeSt": (
        dict(
            type="ResNeSt", arch=dict(blocks=(1, 1, 1, 1), base_width=4, stem_width=4),
            norm_cfg=NORM,
        ),
        "conv1.0.weight",
    ),
    "ResNet": (
        dict(type="ResNet", depth=18, base_channels=4, stem_channels=4, norm_cfg=NORM, **STAGES),
        "conv1.weight",
    ),
    "ResNetV1c": (
        dict(type="ResNetV1c", depth=18, base_channels=4, stem_channels=4, norm_cfg=NORM, **STAGES),
        "stem.0.weight",
    ),
    "MiT": (
        dict(
            type="MixVisionTransformer", embed_dims=4, num_layers=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
        ),
        "layers.0.0.projection.weight",
    ),
    "UNet": (
        dict(type="UNet", base_channels=4, norm_cfg=NORM),
        "encoder.0.0.convs.0.conv.weight",
    ),
}  # fmt: skip


def backbone(kind: str, **options: Any) -> nn.Module:
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        return MODELS.build(dict(STEMS[kind][0], **options))


def filled(model: nn.Module) -> dict[str, Tensor]:
    """Weights that no new model has."""
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(value.shape, generator=generator) + 1
        if value.is_floating_point()
        else torch.full_like(value, 7)
        for key, value in model.state_dict().items()
    }


def written_out(weight: Tensor, channels: int) -> Tensor:
    """The rule of segmentation_models_pytorch, value by value."""
    out, _, height, width = weight.shape
    new = torch.empty(out, channels, height, width)
    for o in range(out):
        for i in range(channels):
            for y in range(height):
                for x in range(width):
                    red, green, blue = weight[o, :, y, x]
                    if channels == 1:
                        new[o, i, y, x] = red + green + blue
                    else:
                        new[o, i, y, x] = (red, green, blue)[i % 3] * (3 / channels)
    return new


def assert_adapted(model: nn.Module, source: dict[str, Tensor], stem: str, channels: int) -> None:
    expected = source | {stem: written_out(source[stem], channels)}
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize("kind", STEMS)
def test_init_cfg(kind: str, channels: int, tmp_path: Path) -> None:
    source, stem = filled(backbone(kind)), STEMS[kind][1]
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    torch.save(source, tmp_path / "w.pth")
    model = backbone(kind, in_channels=channels, init_cfg=init)
    said = check_pretrained(model, init)
    how = "summed to 1" if channels == 1 else f"repeated to {channels}, times 3/{channels}"
    assert f"{stem}: 3 input channels {how}" in said and "\n" not in said
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        model.init_weights()
    assert_adapted(model, source, stem, channels)


@pytest.mark.parametrize("layout", ["published", "openmmlab", "timm"])
def test_other_layouts(layout: str, tmp_path: Path) -> None:
    source = filled(backbone("ResNeSt"))
    theirs = export_state_dict(source, layout)
    torch.save(theirs, tmp_path / "w.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    model = backbone("ResNeSt", in_channels=5, init_cfg=init)
    assert "conv1.0.weight: 3 input channels repeated to 5" in check_pretrained(model, init)
    model.init_weights()
    assert_adapted(model, source, "conv1.0.weight", 5)


def segmentor(kind: str = "ResNeSt", **of_backbone: Any) -> nn.Module:
    config = dict(
        type="EncoderDecoder",
        backbone=dict(STEMS[kind][0], **of_backbone),
        decode_head=dict(
            type="PublishedFCNHead", in_channels=2048, in_index=3, channels=4, norm_cfg=NORM,
            num_classes=3, num_convs=1, concat_input=False,
        ),
    )  # fmt: skip
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        return MODELS.build(config)


@pytest.mark.parametrize("layout", ["ours", "published", "openmmlab"])
def test_a_start_from_a_whole_model(layout: str) -> None:
    source = filled(segmentor())
    theirs = source if layout == "ours" else export_state_dict(source, layout)
    model = segmentor(in_channels=4)
    said = load_weights(model, theirs, start_training=True)
    assert "backbone.conv1.0.weight: 3 input channels repeated to 4, times 3/4" in said
    assert_adapted(model, source, "backbone.conv1.0.weight", 4)
    # Its last layer stays if it is for other classes, its first one is adapted nevertheless.
    fewer = {k: v[:2] if "conv_seg" in k else v for k, v in source.items()}
    said = load_weights(segmentor(in_channels=4), fewer, start_training=True)
    assert "repeated to 4" in said and "another number of classes" in said


def test_evaluation_adapts_nothing() -> None:
    model = segmentor(in_channels=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with raises_user_error("checkpoint", "w.pth") as caught:
        load_weights(model, filled(segmentor()), name="w.pth")
    assert "backbone.conv1.0.weight ([4, 3, 3, 3], the model has [4, 4, 3, 3])" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_not_for_rgb_is_refused(tmp_path: Path) -> None:
    """Which of 5 bands is which of 7, nobody can tell."""
    source = filled(segmentor(in_channels=5))
    with raises_user_error("checkpoint", "w.pth") as caught:
        load_weights(segmentor(in_channels=7), source, start_training=True, name="w.pth")
    assert "only weights for 3 channels" in caught.value.message
    state = {k.removeprefix("backbone."): v for k, v in source.items() if "backbone" in k}
    torch.save(state, tmp_path / "w.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    with raises_user_error("checkpoint", "w.pth") as caught:
        check_pretrained(backbone("ResNeSt", in_channels=7), init)
    assert "conv1.0.weight" in caught.value.message


class TwoStems(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(channels, 4, 3)
        self.wide = nn.Conv2d(channels, 8, 1)


def test_several_convolutions_of_the_image_are_refused(tmp_path: Path) -> None:
    torch.save(TwoStems(3).state_dict(), tmp_path / "w.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    with raises_user_error("checkpoint", "w.pth") as caught:
        check_pretrained(TwoStems(4), init)
    assert "deep.weight cannot be adapted to 4 channels" in caught.value.message
    assert "wide.weight" in caught.value.message


SWIN = dict(
    type="SwinTransformer", embed_dims=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1),
    pretrain_img_size=32,
)  # fmt: skip


def test_modules_that_read_the_file_themselves(tmp_path: Path) -> None:
    """They fit no other number of channels: refused before a run, and load_from adapts them."""
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        source = filled(MODELS.build(dict(SWIN)))
        torch.save(source, tmp_path / "w.pth")
        swin = MODELS.build(dict(SWIN, in_channels=4))
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth"))
    with raises_user_error("checkpoint", "w.pth") as caught:
        check_pretrained(swin, init)
    assert "load_from=" in caught.value.message
    load_weights(swin, tmp_path / "w.pth", start_training=True)
    assert_adapted(swin, source, "patch_embed.projection.weight", 4)
