# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Channels last in memory, a model learns the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.kernels import convolution
from mmseg_resnest.models import ARCHITECTURES, fold_for_inference, use_channels_last

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = {**ARCHITECTURES["resnest14"], "base_width": 8, "stem_width": 4}


def model_of(name: str) -> nn.Module:
    """A config's model with few channels, in float64, without dropout."""
    cfg = load_config(CONFIGS / f"{name}.py")
    cfg.model.backbone.update(init_cfg=None, arch=SMALL)
    cfg.model.decode_head.channels = 16
    cfg.model.auxiliary_head.channels = 16
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return model.train().double()


def learn(model: nn.Module, size: tuple[int, int] = (32, 48)) -> tuple[Tensor, Tensor]:
    """The loss and its gradient."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    classes = model.decode_head.num_classes
    labels = torch.randint(0, classes, (2, 1, *size), generator=generator)
    meta = dict(img_shape=size, ori_shape=size)
    samples = [SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=one)) for one in labels]
    losses = model.loss(images, samples)
    loss = sum(value for name, value in losses.items() if "loss" in name)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "name",
    [
        "fcn_resnest14_scenes",
        "pspnet_resnest50_voc12aug",
        "deeplabv3_resnest26_camvid",
        "encnet_resnest50_voc12aug",
        "deeplabv3plus_resnest101_voc12aug",
        "upernet_resnest101_voc12aug",
    ],
)
def test_it_learns_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # With few channels, too, 3x3 convolutions are made by products.
    monkeypatch.setattr(convolution, "_MANY_CHANNELS", 1)
    plain = model_of(name)
    other = copy.deepcopy(plain)
    assert use_channels_last(other)
    weight = other.backbone.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    maps = other.backbone(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    scores = other.decode_head(maps)
    assert (scores[0] if isinstance(scores, tuple) else scores).is_contiguous()
    loss, gradient = learn(plain)
    other_loss, other_gradient = learn(other)
    torch.testing.assert_close(other_loss, loss, rtol=1e-10, atol=0)
    assert (other_gradient - gradient).norm() < 1e-8 * gradient.norm()
    plain.load_state_dict(other.state_dict())  # in either order of memory


def test_what_was_trained_is_folded_as_any_other() -> None:
    plain = model_of("deeplabv3_resnest26_camvid").float().eval()
    other = copy.deepcopy(plain)
    assert use_channels_last(other)
    names = [name for name, _ in fold_for_inference(plain).named_buffers()]
    assert [name for name, _ in fold_for_inference(other).named_buffers()] == names
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, scores = (model(images, mode="tensor") for model in (plain, other))
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)


def test_what_is_not_known_to_work_stays_as_it_is() -> None:
    class Own(nn.Module):
        """A head that somebody wrote."""

    model = model_of("fcn_resnest14_scenes")
    strides = model.backbone.layer1[0].conv2.conv.weight.stride()
    assert not use_channels_last(nn.Conv2d(3, 4, 3))
    own = copy.deepcopy(model)
    own.auxiliary_head = Own()
    stock = copy.deepcopy(model)
    stock.backbone = nn.Conv2d(3, 4, 3)
    for other in (own, stock):
        assert not use_channels_last(other)
    assert own.backbone.layer1[0].conv2.conv.weight.stride() == strides
