# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Small configs of the parts whose sizes exporters get wrong."""

from __future__ import annotations

from mmengine.config import Config
from small_models import small_config

HEADS = {
    "fcn": dict(type="PublishedFCNHead"),
    "psp": dict(type="PublishedPSPHead", pool_scales=(1, 2, 3, 6)),
    "deeplabv3": dict(type="DeepLabV3Head", dilations=(2, 3, 4)),
    "enc": dict(type="PublishedEncHead", num_codes=4, use_se_loss=False),
    "upernet": dict(type="UPerHead", pool_scales=(1, 2, 3, 6)),
}


def head_config(head: str) -> Config:
    """A narrow ResNet with a head of the published models."""
    cfg = small_config()
    every = head in ("enc", "upernet")
    cfg.model.decode_head = dict(
        **HEADS[head],
        in_channels=[4, 8, 16, 32] if every else 32,
        in_index=(0, 1, 2, 3) if every else 3,
        channels=8, num_classes=4, norm_cfg=dict(type="BN"), align_corners=True,
    )  # fmt: skip
    if head == "enc":
        cfg.model.decode_head.update(in_channels=[8, 16, 32], in_index=(1, 2, 3))
    return cfg


def resnest_config() -> Config:
    """A dilated ResNeSt with an FCN head."""
    cfg = head_config("fcn")
    cfg.model.backbone = dict(
        type="ResNeSt", arch="resnest14", output_stride=8, norm_cfg=dict(type="BN")
    )
    cfg.model.decode_head.update(in_channels=2048)
    return cfg
