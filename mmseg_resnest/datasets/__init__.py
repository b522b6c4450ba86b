# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Data sets: they turn files into samples."""

from .camvid import CamVidDataset
from .check import (
    check_start,
    guard_labels,
    leaf_datasets,
    loss_ignore_index,
    numbers_of_classes,
)
from .custom import CustomDataset
from .layout import check_dataset_folders
from .listing import build_dataset
from .loading import LoadAnnotations, LoadImageFromFile
from .photometric import PackSegInputs, PhotoMetricDistortion, RandomFlip
from .resized_crop import RandomCrop, RandomLongEdgeCrop, RandomResizeCrop, merge_steps
from .scenes import ScenesDataset, write_scenes
from .transforms import RandomLongEdgeResize

__all__ = [
    "CamVidDataset",
    "CustomDataset",
    "LoadAnnotations",
    "LoadImageFromFile",
    "PackSegInputs",
    "PhotoMetricDistortion",
    "RandomCrop",
    "RandomFlip",
    "RandomLongEdgeCrop",
    "RandomLongEdgeResize",
    "RandomResizeCrop",
    "ScenesDataset",
    "build_dataset",
    "check_dataset_folders",
    "check_start",
    "guard_labels",
    "leaf_datasets",
    "loss_ignore_index",
    "merge_steps",
    "numbers_of_classes",
    "write_scenes",
]
