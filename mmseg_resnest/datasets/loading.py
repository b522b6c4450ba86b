# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The stack's loading transforms, which here read from the fast cache where there is one.

They have the stack's names, so that every config has them by its default scope.
"""

from __future__ import annotations

import mmcv.transforms
import mmseg.datasets.transforms

from ..registry import TRANSFORMS
from .cache import ImageFromCache, LabelsFromCache

__all__ = ["LoadAnnotations", "LoadImageFromFile"]


@TRANSFORMS.register_module()
class LoadImageFromFile(ImageFromCache, mmcv.transforms.LoadImageFromFile):
    """``mmcv.transforms.LoadImageFromFile`` with the fast cache."""


@TRANSFORMS.register_module()
class LoadAnnotations(LabelsFromCache, mmseg.datasets.transforms.LoadAnnotations):
    """``mmseg.datasets.transforms.LoadAnnotations`` with the fast cache."""
