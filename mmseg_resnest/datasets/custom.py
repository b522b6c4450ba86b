# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A data set of one's own: a folder of images, a folder of label maps, and lists of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset

from ..errors import UserError
from ..io.image_files import IMAGE_SUFFIXES
from ..io.walk import walk
from ..registry import DATASETS
from .class_names import read_classes_of
from .label_map import MapsLabels
from .layout import FolderCheck, listed_names, sample_of

_SUFFIXES = (*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))  # cameras write .JPG


@DATASETS.register_module()
class CustomDataset(FolderCheck, MapsLabels, BaseSegDataset):
    """Images and label maps that share their names; ``prepare-data custom`` makes such a data set.

    Label maps are 8-bit PNGs with 0..K-1 = class and 255 = ignored. Images may have any of the
    suffixes, even mixed. Folders below the two folders are part of the names. Hidden files and
    folders are passed over, such as ``._a.jpg``, which macOS leaves.

    Args:
        img_suffix: Suffixes that images may have.
        seg_map_suffix: Suffix of label maps.
        classes_file: Names and colours (:mod:`~mmseg_resnest.datasets.class_names`), absolute or
            relative to ``data_root``; None leaves them to ``metainfo``.
        label_map: Merges and leaves out classes, e.g. ``{'bus': 'vehicle', 'car': 'vehicle',
            11: 'ignore'}``, see :func:`.merge_classes`.
        **kwargs: As ``mmseg.datasets.BaseSegDataset``. ``ann_file`` lists the images to take, one
            name a line, see :func:`.listed_names`.

    Raises:
        UserError: The classes file cannot be read, a folder is missing or empty, an image or a
            label map lacks its partner, two images share a name, or a listed image is not there.
    """

    METAINFO: dict[str, Any] = dict()

    def __init__(
        self,
        img_suffix: str | Sequence[str] = _SUFFIXES,
        seg_map_suffix: str = ".png",
        classes_file: str | None = None,
        metainfo: Mapping[str, Any] | None = None,
        data_root: str | None = None,
        **kwargs: Any,
    ) -> None:
        suffixes = (img_suffix,) if isinstance(img_suffix, str) else tuple(img_suffix)
        super().__init__(
            img_suffix=suffixes,
            seg_map_suffix=seg_map_suffix,
            metainfo=read_classes_of(classes_file, data_root, metainfo),
            data_root=data_root,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Lists the samples; a label map without an image is an error too."""
        samples = super().load_data_list()
        folder = self.data_prefix.get("seg_map_path")
        if folder is not None and not self.ann_file:
            labelled = {sample["seg_map_path"] for sample in samples}
            for _, file in _stems(folder, (self.seg_map_suffix,)):
                if str(file) not in labelled:
                    images = self.data_prefix["img_path"]
                    reason = f"this label map has no image in {images}; add it or remove this file"
                    raise UserError("dataset", file, reason)
        return samples

    def list_samples(self) -> list[dict]:
        """The samples of folders that exist and hold files, whether or not each file exists."""
        top = self.data_prefix["img_path"]
        images: dict[str, Path] = {}
        for stem, file in _stems(top, tuple(self.img_suffix)):
            if stem in images:
                reason = f"{images[stem].name} has the same name without suffix; remove one of them"
                raise UserError("dataset", file, reason)
            images[stem] = file
        names = sorted(images)
        if self.ann_file:
            root, suffixes = self.data_root or "", tuple(self.img_suffix)
            names = sorted(listed_names(self.ann_file, top, root, suffixes, images.__contains__))

        labels = self.data_prefix.get("seg_map_path")
        return [sample_of(self, str(images[stem]), labels, stem) for stem in names]


def _stems(top: str, suffixes: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Names without suffix, relative to ``top``, and paths of what has such a suffix.

    A folder with such a name is listed too: its name is a mistake, which must not go unnoticed.
    """
    found = []
    for where, folders, names in walk(top):
        folders[:] = [name for name in folders if name[0] != "."]
        for name in (*folders, *names):
            suffix = next((s for s in suffixes if name.endswith(s)), None)
            if suffix is not None and name[0] != ".":
                file = Path(where, name)
                found.append((file.relative_to(top).as_posix().removesuffix(suffix), file))
    return sorted(found)
