# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Configs of two tiny models, one that sees each pixel alone and a small network; pictures."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.config import Config
from numpy.typing import NDArray
from torch import nn

from mmseg_resnest.inference import Segmentor
from mmseg_resnest.registry import MODELS


@MODELS.register_module(force=True)
class PixelBackbone(nn.Module):
    """Passes the image on."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (images * self.scale,)


def small_config(pixel: bool = False, classes: int = 4) -> Config:
    """A config of a model for the names ``c0``, ``c1``, ..."""
    backbone = dict(type="PixelBackbone")
    channels = 3
    if not pixel:
        backbone = dict(
            type="ResNetV1c", depth=18, base_channels=4, stem_channels=4,
            strides=(1, 2, 1, 1), dilations=(1, 1, 1, 1), norm_cfg=dict(type="BN"),
        )  # fmt: skip
        channels = 32
    return Config(
        dict(
            default_scope="mmseg_resnest",
            test_dataloader=dict(
                dataset=dict(
                    type="BaseSegDataset",
                    metainfo=dict(classes=[f"c{i}" for i in range(classes)]),
                    pipeline=[dict(type="LoadImageFromFile"), dict(type="PackSegInputs")],
                )
            ),
            model=dict(
                type="EncoderDecoder",
                data_preprocessor=dict(
                    type="SegDataPreProcessor",
                    mean=[123.675, 116.28, 103.53],
                    std=[58.395, 57.12, 57.375],
                    bgr_to_rgb=True,
                ),
                backbone=backbone,
                decode_head=dict(
                    type="FCNHead", in_channels=channels, channels=8, num_convs=0 if pixel else 1,
                    kernel_size=1 if pixel else 3, concat_input=False, num_classes=classes,
                    in_index=-1, norm_cfg=dict(type="BN"), align_corners=False,
                ) | (dict(channels=3) if pixel else {}),
                test_cfg=dict(mode="whole"),
            ),
        )
    )  # fmt: skip


def balanced(model: Segmentor) -> Segmentor:
    """Makes an untrained model use all its classes."""
    torch.manual_seed(0)
    last = model.model.decode_head.conv_seg
    torch.nn.init.normal_(last.weight)
    last.bias.data.zero_()
    sample = model._prepare(blobs(64, 64, seed=99))
    logits = model._run([sample], scores=True)[0].seg_logits.data
    # inference tensors cannot enter a parameter
    spread = logits.std((1, 2)).clone().numpy()
    mean = logits.mean((1, 2)).clone().numpy()
    last.weight.data /= torch.from_numpy(spread)[:, None, None, None]
    last.bias.data -= torch.from_numpy(mean / spread)
    return model


def blobs(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random picture."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (height // 8 + 2, width // 8 + 2, 3))
    large = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return (0.7 * large + 0.3 * rng.uniform(0, 255, large.shape)).astype(np.uint8)
