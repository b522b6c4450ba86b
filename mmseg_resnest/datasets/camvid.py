# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""CamVid with 11 classes, in the layout of the SegNet tutorial's copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..registry import DATASETS
from .custom import CustomDataset

_VOID = 11  # in the label files


@DATASETS.register_module()
class CamVidDataset(CustomDataset):
    """CamVid, 11 classes (Brostow et al., 2009; split and classes of SegNet, arXiv 1511.00561).

    Layout below ``data_root``: ``train/``, ``trainannot/``, ``val/``, ``valannot/``, ``test/``,
    ``testannot/``. Label maps are 8-bit PNGs of the image's name with 0..10 = class and 11 =
    void, which becomes ``ignore_index`` when labels are loaded. Images may be ``.jpg`` or
    ``.png``, even mixed. Arguments and errors are those of ``CustomDataset``.
    """

    METAINFO = dict(
        classes=("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence",
                 "Car", "Pedestrian", "Bicyclist"),
        palette=[[128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222],
                 [128, 128, 0], [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0],
                 [0, 128, 192]],
    )  # fmt: skip

    def __init__(
        self,
        img_suffix: str | Sequence[str] = (".jpg", ".png"),
        seg_map_suffix: str = ".png",
        **kwargs: Any,
    ) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)

    @classmethod
    def get_label_map(cls, new_classes: Sequence | None = None) -> dict[int, int]:
        """The map from labels in the files to labels in training; void is ignored."""
        return {**(super().get_label_map(new_classes) or {}), _VOID: 255}
