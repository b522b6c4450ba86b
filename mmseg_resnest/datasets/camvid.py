# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""CamVid with 11 classes, in the layout of the SegNet tutorial's copy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset

from ..errors import UserError
from ..registry import DATASETS
from .layout import FolderCheck

_VOID = 11  # in the label files


@DATASETS.register_module()
class CamVidDataset(FolderCheck, BaseSegDataset):
    """CamVid, 11 classes (Brostow et al., 2009; split and classes of SegNet, arXiv 1511.00561).

    Layout below ``data_root``: ``train/``, ``trainannot/``, ``val/``, ``valannot/``, ``test/``,
    ``testannot/``. Label maps are 8-bit PNGs of the image's name with 0..10 = class and 11 =
    void, which becomes ``ignore_index`` when labels are loaded. Images may be ``.jpg`` or
    ``.png``, even mixed.

    Args:
        img_suffix: Suffixes that images may have.
        seg_map_suffix: Suffix of label maps.
        **kwargs: As ``mmseg.datasets.BaseSegDataset``. With ``ann_file`` (one name without suffix
            a line) only the images it lists are taken.

    Raises:
        UserError: If a folder is missing or empty, an image or a label map lacks its partner, or
            two images share a name.
    """

    METAINFO = dict(
        classes=(
            "Sky",
            "Building",
            "Pole",
            "Road",
            "Pavement",
            "Tree",
            "SignSymbol",
            "Fence",
            "Car",
            "Pedestrian",
            "Bicyclist",
        ),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )

    def __init__(
        self,
        img_suffix: str | Sequence[str] = (".jpg", ".png"),
        seg_map_suffix: str = ".png",
        **kwargs: Any,
    ) -> None:
        suffixes = (img_suffix,) if isinstance(img_suffix, str) else tuple(img_suffix)
        super().__init__(img_suffix=suffixes, seg_map_suffix=seg_map_suffix, **kwargs)

    @classmethod
    def get_label_map(cls, new_classes: Sequence | None = None) -> dict[int, int]:
        """The map from labels in the files to labels in training; void is ignored."""
        return {**(super().get_label_map(new_classes) or {}), _VOID: 255}

    def image_suffixes(self) -> tuple[str, ...]:
        """The suffixes that an image may have."""
        return tuple(self.img_suffix)

    def load_data_list(self) -> list[dict]:
        """Lists the samples; a label map without an image is a mistake too."""
        samples = super().load_data_list()
        folder = self.data_prefix.get("seg_map_path")
        if folder is not None and not self.ann_file:
            images = {Path(sample["img_path"]).stem for sample in samples}
            for name in sorted(os.listdir(folder)):
                stem = name.removesuffix(self.seg_map_suffix)
                if name.endswith(self.seg_map_suffix) and stem not in images:
                    raise UserError(
                        f"CamVidDataset: label map {Path(folder, name)} has no image in"
                        f" {self.data_prefix['img_path']}; add the image or remove the label map"
                    )
        return samples

    def _list_samples(self) -> list[dict]:
        images: dict[str, Path] = {}
        for file in sorted(Path(self.data_prefix["img_path"]).iterdir()):
            if file.suffix not in self.image_suffixes():
                continue
            if file.stem in images:
                raise UserError(
                    f"CamVidDataset: {images[file.stem]} and {file.name} are the same image twice;"
                    " remove one of them"
                )
            images[file.stem] = file
        if self.ann_file:
            listed = Path(self.ann_file).read_text(encoding="utf-8").split()
            absent = [name for name in listed if name not in images]
            if absent:
                raise UserError(
                    f"CamVidDataset: {self.ann_file} lists {absent[0]}, but"
                    f" {self.data_prefix['img_path']} holds no such image"
                )
            images = {name: images[name] for name in listed}

        folder = self.data_prefix.get("seg_map_path")
        samples = []
        for stem, image in sorted(images.items()):
            sample: dict[str, Any] = dict(
                img_path=str(image),
                label_map=self.label_map,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            if folder is not None:
                sample["seg_map_path"] = str(Path(folder, stem + self.seg_map_suffix))
            samples.append(sample)
        return samples
