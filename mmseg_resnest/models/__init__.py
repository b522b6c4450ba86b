# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Models: they turn images into scores."""

from .backbones import MSCAN, MixVisionTransformer
from .data_preprocessor import SegDataPreProcessor
from .distillation import Distillation
from .folding import fold_for_inference
from .heads import DeepLabV3Head, EncHead, PublishedEncHead, PublishedFCNHead, PublishedPSPHead
from .light_ham import LightHamHead
from .losses import (
    BoundaryLoss,
    ChannelWiseDivergence,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    HuasdorffDisstanceLoss,
    KLDivergence,
    LovaszLoss,
    OhemCrossEntropy,
    OHEMPixelSampler,
    TverskyLoss,
)
from .memory_format import use_channels_last
from .multi_scale import MultiScaleGrid, MultiScaleGridTTA
from .multilabel import overlaps, thresholds_of
from .norm import SyncBN
from .pretrained import Pretrained
from .resnest import ARCHITECTURES, ResNeSt
from .segmentor import EncoderDecoder, input_channels, probabilities, windows_of
from .split_attention import DropBlock2d, SplitAttentionConv2d
from .tta import SegTTAModel

__all__ = [
    "ARCHITECTURES",
    "BoundaryLoss",
    "ChannelWiseDivergence",
    "CrossEntropyLoss",
    "DeepLabV3Head",
    "DiceLoss",
    "Distillation",
    "DropBlock2d",
    "EncHead",
    "EncoderDecoder",
    "FocalLoss",
    "HuasdorffDisstanceLoss",
    "KLDivergence",
    "LightHamHead",
    "LovaszLoss",
    "MSCAN",
    "MixVisionTransformer",
    "MultiScaleGrid",
    "MultiScaleGridTTA",
    "OHEMPixelSampler",
    "OhemCrossEntropy",
    "Pretrained",
    "PublishedEncHead",
    "PublishedFCNHead",
    "PublishedPSPHead",
    "ResNeSt",
    "SegDataPreProcessor",
    "SegTTAModel",
    "SplitAttentionConv2d",
    "SyncBN",
    "TverskyLoss",
    "fold_for_inference",
    "input_channels",
    "overlaps",
    "probabilities",
    "thresholds_of",
    "use_channels_last",
    "windows_of",
]
