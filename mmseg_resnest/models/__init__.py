# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Models: they turn images into scores."""

from .folding import fold_for_inference
from .heads import DeepLabV3Head, PublishedEncHead, PublishedFCNHead, PublishedPSPHead
from .losses import CrossEntropyLoss
from .memory_format import use_channels_last
from .multi_scale import MultiScaleGrid, MultiScaleGridTTA
from .norm import SyncBN
from .pretrained import Pretrained
from .resnest import ARCHITECTURES, ResNeSt
from .segmentor import EncoderDecoder
from .split_attention import DropBlock2d, SplitAttentionConv2d
from .tta import SegTTAModel

__all__ = [
    "ARCHITECTURES",
    "CrossEntropyLoss",
    "DeepLabV3Head",
    "DropBlock2d",
    "EncoderDecoder",
    "MultiScaleGrid",
    "MultiScaleGridTTA",
    "Pretrained",
    "PublishedEncHead",
    "PublishedFCNHead",
    "PublishedPSPHead",
    "ResNeSt",
    "SegTTAModel",
    "SplitAttentionConv2d",
    "SyncBN",
    "fold_for_inference",
    "use_channels_last",
]
