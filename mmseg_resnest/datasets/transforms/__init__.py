# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Transforms: they load, resize, crop and colour samples."""

from .loading import LoadAnnotations, LoadImageFromFile
from .long_edge import RandomLongEdgeResize
from .merge import merge_steps
from .photometric import PackSegInputs, PhotoMetricDistortion
from .resized_crop import RandomCrop, RandomLongEdgeCrop, RandomResizeCrop

__all__ = [
    "LoadAnnotations",
    "LoadImageFromFile",
    "PackSegInputs",
    "PhotoMetricDistortion",
    "RandomCrop",
    "RandomLongEdgeCrop",
    "RandomLongEdgeResize",
    "RandomResizeCrop",
    "merge_steps",
]
