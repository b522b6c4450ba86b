# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A tiny segmentor and its batches, for what does not depend on the network."""

from __future__ import annotations

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from mmseg.structures import SegDataSample
from torch import nn

from mmseg_resnest.registry import MODELS

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


class TinyBackbone(BaseModule):
    """Features (N, 8, H/4, W/4); its train() returns None, like that of the stack's ResNet."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, images):
        return (torch.relu(self.conv2(torch.relu(self.conv1(images)))),)

    def train(self, mode=True):
        super().train(mode)


def tiny_config(test_cfg=None, preprocessor=None, head=None, **kwargs):
    head = {"num_convs": 1, "concat_input": False, **(head or {})}
    if "num_codes" in head:
        del head["num_convs"], head["concat_input"]
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": MEAN,
            "std": STD,
            "bgr_to_rgb": True,
            **(preprocessor or {}),
        },
        "backbone": {"type": TinyBackbone},
        "decode_head": {
            "type": "FCNHead",
            "in_channels": 8,
            "in_index": 0,
            "channels": 8,
            "num_classes": 4,
            "norm_cfg": {"type": "BN"},
            "align_corners": True,
            **head,
        },
        "test_cfg": test_cfg,
        **kwargs,
    }


def build(config) -> nn.Module:
    """The model of a config, with seeded weights, in evaluation mode."""
    init_default_scope("mmseg_resnest")
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(config)).eval()


def built(*args, **kwargs) -> nn.Module:
    return build(tiny_config(*args, **kwargs))


def seeded_images(count=1, height=37, width=53, dtype=torch.float32):
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)


def metas_of(images):
    size = tuple(images.shape[2:])
    return [{"ori_shape": size, "img_shape": size, "pad_shape": size} for _ in images]


def batch_of(height=37, width=53, count=1, ori_shape=None):
    """Images of uint8 and their samples, as the data loader gives them."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (count, 3, height, width), generator=generator)
    shape = {"ori_shape": ori_shape or (height, width), "img_shape": (height, width)}
    samples = [SegDataSample(metainfo=dict(shape)) for _ in range(count)]
    return {"inputs": list(pixels.to(torch.uint8)), "data_samples": samples}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest magnitude."""
    assert actual.shape == expected.shape
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())
