# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Models: they turn images into scores."""

from .heads import DeepLabV3Head, PublishedEncHead, PublishedFCNHead, PublishedPSPHead
from .norm import SyncBN
from .resnest import ARCHITECTURES, ResNeSt
from .split_attention import DropBlock2d, SplitAttentionConv2d

__all__ = [
    "ARCHITECTURES",
    "DeepLabV3Head",
    "DropBlock2d",
    "PublishedEncHead",
    "PublishedFCNHead",
    "PublishedPSPHead",
    "ResNeSt",
    "SplitAttentionConv2d",
    "SyncBN",
]
