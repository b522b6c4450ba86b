# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images in one folder for each class, as ImageNet has them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from ..errors import UserError
from ..io.image_files import IMAGE_SUFFIXES
from ..io.text import printable
from ..io.walk import walk
from ..registry import DATASETS

__all__ = ["ImageFolder", "class_folders"]

SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
_LAYOUT = (
    "it must hold a folder for each class, with its images, as ImageNet has them: "
    "train/CLASS/*.JPEG and val/CLASS/*.JPEG"
)


def class_folders(
    folder: str | os.PathLike[str], suffixes: tuple[str, ...] = SUFFIXES
) -> list[str]:
    """The names of the classes, sorted: ImageNet's, in the order of the published models.

    Args:
        folder: ``train`` or ``val`` of a data set; it holds a folder for each class.
        suffixes: Ends of the names of images.

    Raises:
        UserError: A folder is missing, is no folder, cannot be read, or is empty; or the folders
            in ``train`` beside it have other names, so that labels would not mean the same.
    """
    path = Path(folder)
    if not path.exists():
        raise UserError("not-found", path, f"this folder of images does not exist; {_LAYOUT}")
    if not path.is_dir():
        raise UserError("wrong-path-type", path, f"is not a folder; {_LAYOUT}")
    names = _names(path)
    if not names:
        raise UserError("empty", path, f"has no folder of a class; {_LAYOUT}")
    for name in names:
        if next(_images(path / name, suffixes), None) is None:
            message = f"this folder of a class has no image ({', '.join(suffixes)}); {_LAYOUT}"
            raise UserError("empty", path / name, message)
    train = path.parent / "train"
    differing = sorted(set(names) ^ set(_names(train))) if train.is_dir() else []
    if differing:
        there, without = (path, train) if differing[0] in names else (train, path)
        message = f"has a folder {printable(differing[0])}, and {without} has none; the classes of "
        message += f"both must be the same ({len(differing)} are not)"
        raise UserError("classes", there, message)
    return names


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """Images below one folder for each class; the sorted names of the folders are the classes.

    Samples have ``img_path`` and ``gt_label``, the number of the class from 0.

    Args:
        data_root: The folder of the data set.
        split: The folder in it that holds the folders of the classes: ``train``, ``val``.
        suffixes: Ends of the names of images, in small letters.
        **kwargs: As of ``mmengine.dataset.BaseDataset``: ``pipeline``, ``indices``, ...

    Raises:
        UserError: As :func:`class_folders`.
    """

    def __init__(
        self,
        data_root: str,
        split: str = "train",
        suffixes: Sequence[str] = SUFFIXES,
        **kwargs: Any,
    ) -> None:
        self.split = split
        self.suffixes = tuple(suffixes)
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Lists the samples."""
        folder = Path(self.data_root, self.split)
        classes = class_folders(folder, self.suffixes)
        self._metainfo["classes"] = tuple(classes)
        return [
            {"img_path": path, "gt_label": label}
            for label, name in enumerate(classes)
            for path in sorted(_images(folder / name, self.suffixes))
        ]


def _images(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    for where, _, names in walk(folder):
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield os.path.join(where, name)


def _names(path: Path) -> list[str]:
    try:
        return sorted(e.name for e in os.scandir(path) if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        raise UserError("unreadable", path, f"cannot be listed ({error.strerror})") from error
