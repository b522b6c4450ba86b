# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Models folded for inference give the scores of the models that they were made from."""

import copy

import pytest
import torch
from mmengine.registry import init_default_scope
from published_reference import draw
from torch import nn

from mmseg_resnest.kernels.winograd import choose_form
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
    monkeypatch.setattr(folding, "_LEAST_TILES", 1)
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


def test_maps_of_many_sizes_share_transformed_weights():
    plain = nn.Conv2d(32, 32, 3, padding=12, dilation=12, bias=False)
    conv = FoldedConv2d(plain)
    sizes = ((64, 64), (72, 40), (97, 70), (33, 64), (12, 90), (24, 64), (24, 20), (20, 90))
    with torch.inference_mode():
        for height, width in sizes:
            x = torch.randn(1, 32, height, width)
            assert_close(plain(x), conv(x))
            if len(conv._transformed) == 1:
                four = next(iter(conv._transformed.values()))
            assert len(conv._transformed) <= 4
            if min(height, width) > 24:
                assert conv._transformed[tuple(choose_form(n, 12) for n in (64, 64))] is four


def test_small_maps_and_other_types_are_convolved_directly(monkeypatch):
    conv = FoldedConv2d(nn.Conv2d(32, 32, 3, padding=1))
    monkeypatch.setattr(folding, "convolve", None)
    with torch.inference_mode():
        conv(torch.randn(1, 32, 5, 5))
        with torch.autocast("cpu", torch.bfloat16):
            assert conv(torch.randn(1, 32, 32, 32)).dtype == torch.bfloat16
        assert conv.double()(torch.randn(1, 32, 32, 32).double()).dtype == torch.float64
