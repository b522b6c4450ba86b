# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Models folded for inference give the scores of the models that they were made from."""

import copy

import pytest
import torch
from mmengine.registry import init_default_scope
from published_reference import draw
from torch import nn

from mmseg_resnest.models import ResNeSt, folding
from mmseg_resnest.models.folding import FoldedConv2d, fold_for_inference
from mmseg_resnest.registry import MODELS

NORM = dict(type="BN")
HEADS = {
    "deeplabv3": dict(type="DeepLabV3Head", channels=32, dilations=(2, 4, 9)),
    "aspp": dict(type="mmseg.ASPPHead", channels=32, dilations=(1, 2, 4, 9)),
    "psp": dict(type="PublishedPSPHead", channels=32, pool_scales=(1, 2, 3)),
    "fcn": dict(type="PublishedFCNHead", channels=32),
    "enc": dict(type="PublishedEncHead", in_channels=[64], in_index=[0], channels=32, num_codes=4,
                loss_se_decode=dict(type="mmseg.CrossEntropyLoss", use_sigmoid=True)),
}  # fmt: skip


def randomise(model):
    for name, tensor in model.state_dict().items():
        draw(name, tensor)
    return model.eval()


def images(height=40, width=56, count=2):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_close(expected, ours):
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "arch",
    [
        dict(blocks=(1, 1, 1, 1), radix=2),
        dict(blocks=(1, 1, 1, 1), radix=1, avd_first=True),
        dict(blocks=(1, 1, 1, 1), radix=4, groups=2, base_width=40),
    ],
    ids=str,
)
def test_the_backbone_gives_the_same_features(arch, monkeypatch):
    monkeypatch.setattr(folding, "_LEAST_CHANNELS", 1)
    monkeypatch.setattr(folding, "_LEAST_PIXELS", 1)
    monkeypatch.setattr(folding, "_LEAST_SAVED", 0)
    model = randomise(ResNeSt({**arch, "stem_width": 8}, output_stride=8, norm_cfg=NORM))
    folded = nn.ModuleList([copy.deepcopy(model)])
    fold_for_inference(folded)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    with torch.inference_mode():
        for expected, ours in zip(model(images()), folded[0](images()), strict=True):
            assert_close(expected, ours)


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, 64, 13, 17, generator=generator).relu()]


@pytest.mark.parametrize("name", HEADS)
def test_heads_give_the_same_scores(name, features):
    init_default_scope("mmseg_resnest")
    cfg = dict(in_channels=64, in_index=0, num_classes=7, norm_cfg=NORM, align_corners=True)
    head = randomise(MODELS.build({**cfg, **HEADS[name]}))
    holder = fold_for_inference(nn.ModuleList([copy.deepcopy(head)]))
    assert any(isinstance(m, FoldedConv2d) for m in holder.modules())
    with torch.inference_mode():
        expected, ours = head(features), holder[0](features)
    for one, other in zip(
        expected if isinstance(expected, tuple) else [expected],
        ours if isinstance(ours, tuple) else [ours],
        strict=True,
    ):
        assert_close(one, other)


def test_what_cannot_be_folded_stays():
    """Group norm has no fixed statistics; nor has a batch norm in training."""
    group = ResNeSt(
        dict(blocks=(1, 1, 1, 1), stem_width=8), norm_cfg=dict(type="GN", num_groups=4)
    ).eval()
    training = ResNeSt(dict(blocks=(1, 1, 1, 1), stem_width=8), norm_cfg=NORM).train()
    holder = nn.ModuleList([group, training])
    before = list(holder.state_dict())
    fold_for_inference(holder)
    assert list(holder.state_dict()) == before


@pytest.mark.parametrize(
    ("channels", "size", "dilation", "count", "products"),
    [
        (128, 64, 1, 1, True),  # stages 3 and 4, and what follows the pyramid
        (128, 64, 4, 1, True),
        (128, 64, 12, 1, False),  # the pyramid: four tiles where little more than one is needed
        (128, 64, 36, 1, False),
        (128, 160, 12, 1, True),  # and where they fit
        (64, 64, 1, 1, False),
        (128, 16, 1, 1, False),  # too few pixels for the transform of the weights
        (128, 16, 1, 4, True),
    ],
)
def test_a_layer_and_its_map_choose_the_kernel(
    channels, size, dilation, count, products, monkeypatch
):
    def refuse(*args):
        raise AssertionError("the other kernel")

    plain = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
    x = torch.randn(count, channels, size, size)
    with torch.inference_mode():
        expected = plain(x)
        if products:
            monkeypatch.setattr(folding.F, "conv2d", refuse)
        else:
            monkeypatch.setattr(folding, "convolve", refuse)
        assert_close(expected, FoldedConv2d(plain)(x))


def test_other_types_are_convolved_directly(monkeypatch):
    conv = FoldedConv2d(nn.Conv2d(128, 128, 3, padding=1))
    monkeypatch.setattr(folding, "convolve", None)
    x = torch.randn(1, 128, 32, 32)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            assert conv(x).dtype == torch.bfloat16
        assert conv.double()(x.double()).dtype == torch.float64
