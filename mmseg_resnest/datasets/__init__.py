# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Data sets: they turn files into samples."""

from .camvid import CamVidDataset
from .check import (
    check_start,
    guard_labels,
    image_folders,
    image_sizes,
    leaf_datasets,
    loss_ignore_index,
    mixed_batch,
    numbers_of_classes,
)
from .custom import CustomDataset
from .image_folder import ImageFolder
from .layout import check_dataset_folders
from .listing import build_dataset, forget_listed
from .published import (
    ADE20KDataset,
    CityscapesDataset,
    PascalContextDataset,
    PascalContextDataset59,
    PascalVOCDataset,
)
from .scenes import ScenesDataset, write_scenes
from .transforms import (
    LoadAnnotations,
    LoadBands,
    LoadImageFromFile,
    LoadMultilabel,
    PackSegInputs,
    PhotoMetricDistortion,
    RandomCrop,
    RandomLongEdgeCrop,
    RandomLongEdgeResize,
    RandomResizeCrop,
    merge_steps,
    written_index,
)
from .wrappers import ClassBalancedDataset, inside

__all__ = [
    "ADE20KDataset",
    "CamVidDataset",
    "CityscapesDataset",
    "ClassBalancedDataset",
    "CustomDataset",
    "ImageFolder",
    "LoadAnnotations",
    "LoadBands",
    "LoadImageFromFile",
    "LoadMultilabel",
    "PackSegInputs",
    "PascalContextDataset",
    "PascalContextDataset59",
    "PascalVOCDataset",
    "PhotoMetricDistortion",
    "RandomCrop",
    "RandomLongEdgeCrop",
    "RandomLongEdgeResize",
    "RandomResizeCrop",
    "ScenesDataset",
    "build_dataset",
    "check_dataset_folders",
    "check_start",
    "forget_listed",
    "guard_labels",
    "image_folders",
    "image_sizes",
    "inside",
    "leaf_datasets",
    "loss_ignore_index",
    "merge_steps",
    "mixed_batch",
    "numbers_of_classes",
    "write_scenes",
    "written_index",
]
