# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The published heads: their layers, dropout and the encoding layer's arithmetic."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.models.utils import Encoding
from torch import nn

from mmseg_resnest.models import DeepLabV3Head, PublishedEncHead
from mmseg_resnest.models.heads import ResidualEncoding
from mmseg_resnest.registry import MODELS


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmseg_resnest")


def head(kind: str, **kwargs) -> nn.Module:
    common = dict(
        type=kind,
        in_channels=64,
        in_index=3,
        channels=16,
        num_classes=7,
        norm_cfg=dict(type="SyncBN"),
        align_corners=True,
    )
    if kind == "PublishedEncHead":
        common.update(in_channels=[64], in_index=[3], num_codes=8)
    return MODELS.build({**common, **kwargs})


def features(channels: int = 64) -> list[torch.Tensor]:
    return [torch.randn(2, channels, 9, 11) for _ in range(4)]


@pytest.mark.parametrize(
    "kind", ["PublishedFCNHead", "PublishedPSPHead", "PublishedEncHead", "DeepLabV3Head"]
)
def test_dropout_before_the_classifier_is_by_element(kind):
    torch.manual_seed(0)
    layer = head(kind, dropout_ratio=0.3)
    seen = []
    layer.dropout.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    layer.train()(features())
    before, after = seen[0]
    dropped = (after == 0) & (before != 0)
    share = dropped.float().sum((2, 3)) / (before != 0).float().sum((2, 3)).clamp(min=1)
    # whole channels would give shares of 0 or 1
    assert ((share > 0.05) & (share < 0.8)).float().mean() > 0.9
    assert isinstance(layer.eval().dropout, nn.Dropout)


def test_deeplabv3_layers_have_the_published_shapes():
    layer = DeepLabV3Head(in_channels=2048, channels=256, num_classes=150, in_index=3)
    shapes = {k: tuple(v.shape) for k, v in layer.state_dict().items() if v.dim() == 4}
    assert shapes == {
        "conv_seg.weight": (150, 256, 1, 1),
        "aspp.0.conv.weight": (256, 2048, 1, 1),
        **{f"aspp.{i}.conv.weight": (256, 2048, 3, 3) for i in (1, 2, 3)},
        "image_pool.conv.weight": (256, 2048, 1, 1),
        "project.conv.weight": (256, 1280, 1, 1),
        "bottleneck.conv.weight": (256, 256, 3, 3),
    }
    assert [b.conv.dilation[0] for b in layer.aspp] == [1, 12, 24, 36]
    assert layer.project_dropout.p == 0.5 and isinstance(layer.project_dropout, nn.Dropout2d)


def test_encoding_layer_equals_the_stacks_with_gradients():
    torch.manual_seed(0)
    stock, ours = Encoding(32, 8), ResidualEncoding(32, 8)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(2, 32, 6, 5)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, actual = stock(a), ours(b)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)
    for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)


def test_encoding_layer_is_exact_enough_under_autocast():
    layer = ResidualEncoding(32, 8)
    x = torch.randn(2, 32, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, layer(x))


def test_semantic_encoding_scores_come_with_the_enc_head():
    layer = head("PublishedEncHead")
    assert isinstance(layer, PublishedEncHead)
    scores, presence = layer(features())
    assert scores.shape == (2, 7, 9, 11) and presence.shape == (2, 7)
