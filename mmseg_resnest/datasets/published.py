# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The stack's data sets of the published models, with ``label_map``.

They have the stack's names, so that every config uses them, and differ in nothing else.
"""

from __future__ import annotations

import mmseg.datasets

from ..registry import DATASETS
from .label_map import MapsLabels


@DATASETS.register_module()
class ADE20KDataset(MapsLabels, mmseg.datasets.ADE20KDataset):
    """mmseg's ``ADE20KDataset``, which takes ``label_map``."""


@DATASETS.register_module()
class CityscapesDataset(MapsLabels, mmseg.datasets.CityscapesDataset):
    """mmseg's ``CityscapesDataset``, which takes ``label_map``."""


@DATASETS.register_module()
class PascalContextDataset(MapsLabels, mmseg.datasets.PascalContextDataset):
    """mmseg's ``PascalContextDataset``, which takes ``label_map``."""


@DATASETS.register_module()
class PascalContextDataset59(MapsLabels, mmseg.datasets.PascalContextDataset59):
    """mmseg's ``PascalContextDataset59``, which takes ``label_map``."""


@DATASETS.register_module()
class PascalVOCDataset(MapsLabels, mmseg.datasets.PascalVOCDataset):
    """mmseg's ``PascalVOCDataset``, which takes ``label_map``."""
