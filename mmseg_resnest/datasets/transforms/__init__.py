# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Transforms: they load, resize, crop and colour samples.

Those of :mod:`.albu`, :mod:`.colour` and :mod:`.geometry` take the names of the stack's, whose own
are wrong.
"""

from . import albu, colour, geometry
from .bands import LoadBands
from .loading import LoadAnnotations, LoadImageFromFile, LoadImageFromNDArray
from .long_edge import RandomLongEdgeResize
from .merge import merge_steps, written_index
from .multilabel import LoadMultilabel
from .photometric import PackSegInputs, PhotoMetricDistortion
from .resized_crop import RandomCrop, RandomLongEdgeCrop, RandomResizeCrop

__all__ = [
    "LoadAnnotations",
    "LoadBands",
    "LoadImageFromFile",
    "LoadImageFromNDArray",
    "LoadMultilabel",
    "PackSegInputs",
    "PhotoMetricDistortion",
    "RandomCrop",
    "RandomLongEdgeCrop",
    "RandomLongEdgeResize",
    "RandomResizeCrop",
    "albu",
    "colour",
    "geometry",
    "merge_steps",
    "written_index",
]
