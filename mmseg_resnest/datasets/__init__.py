# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Data sets: they turn files into samples."""

from .cache import LoadAnnotationsFromCache, LoadImageFromCache
from .camvid import CamVidDataset
from .custom import CustomDataset
from .layout import check_dataset_folders
from .scenes import ScenesDataset, write_scenes
from .transforms import RandomLongEdgeResize

__all__ = [
    "CamVidDataset",
    "CustomDataset",
    "LoadAnnotationsFromCache",
    "LoadImageFromCache",
    "RandomLongEdgeResize",
    "ScenesDataset",
    "check_dataset_folders",
    "write_scenes",
]
