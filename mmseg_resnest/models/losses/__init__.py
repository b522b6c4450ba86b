# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Losses of the names of MMSegmentation's, which a head passes scores, labels and what it ignores.

Each takes the arguments of MMSegmentation's class of its name and computes what that documents;
docs/recipes.md has a table of what differs and why.
"""

from .base import SegmentationLoss
from .check import build_distillation, check_losses, check_multilabel_loss
from .distillation import ChannelWiseDivergence, DistillationLoss, KLDivergence
from .pixels import BoundaryLoss, CrossEntropyLoss, FocalLoss, OhemCrossEntropy
from .regions import DiceLoss, HuasdorffDisstanceLoss, LovaszLoss, TverskyLoss
from .sampler import OHEMPixelSampler

__all__ = [
    "BoundaryLoss",
    "ChannelWiseDivergence",
    "CrossEntropyLoss",
    "DiceLoss",
    "DistillationLoss",
    "FocalLoss",
    "HuasdorffDisstanceLoss",
    "KLDivergence",
    "LovaszLoss",
    "OHEMPixelSampler",
    "OhemCrossEntropy",
    "SegmentationLoss",
    "TverskyLoss",
    "build_distillation",
    "check_losses",
    "check_multilabel_loss",
]
