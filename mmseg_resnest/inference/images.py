# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Finding images, and reading them as pictures."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..datasets.reader import ImageInput, ImageReader
from ..errors import UserError
from ..io.image_files import IMAGE_SUFFIXES
from ..io.image_sources import is_address
from ..io.up_to_date import Journal
from ..io.walk import walk

__all__ = ["RECORD", "find_images", "find_inputs", "read_image"]

#: The journal in an output folder.
RECORD = "predictions.jsonl"
_MISSING = "does not exist; name an image file or a folder of images"


class _Written:
    """What predictions have written, by the records in their folders: it is not an input."""

    def __init__(self) -> None:
        self._records: dict[Path, Journal | None] = {}

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        file = Path(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        for i, folder in enumerate(file.parents):
            if folder not in self._records:
                record = folder / RECORD
                self._records[folder] = Journal(record) if record.is_file() else None
            journal = self._records[folder]
            # A record names files, and folders of label maps.
            if journal is not None and any(map(journal.names, (file, *file.parents[:i]))):
                return True
        return file.name == RECORD


def find_images(
    source: str | os.PathLike[str],
    leave_out: str | os.PathLike[str] | None = None,
    suffixes: Sequence[str] = (),
) -> tuple[list[Path], list[Path]]:
    """The images of a folder and its subfolders, and its other files; hidden ones are left out.

    Links are followed. What predictions have written is no image, nor another file. A folder that
    cannot be listed counts as an image, which cannot be read.

    Args:
        source: The folder.
        leave_out: A folder below it that is not searched.
        suffixes: Of more images than the usual formats, see :attr:`ImageReader.suffixes`.

    Raises:
        UserError: ``source`` is not a folder, or holds no image.
    """
    root = Path(source)
    if not root.is_dir():
        raise UserError("not-found", root, _MISSING)
    without = None if leave_out is None else Path(leave_out).resolve()
    known = (*IMAGE_SUFFIXES, *(suffix.lower() for suffix in suffixes))
    images: list[Path] = []
    others: list[Path] = []
    written = _Written()
    for folder, folders, names in walk(root, unreadable=lambda path, _: images.append(Path(path))):
        # In place, so that walk leaves them out.
        folders[:] = [f for f in folders if f[0] != "." and Path(folder, f).resolve() != without]
        for file in (Path(folder, name) for name in names if name[0] != "."):
            image = file.name.lower().endswith(known) and _may_be_read(file)
            if file not in written:
                (images if image else others).append(file)
    if not images:
        said = "holds no image (.jpg, .png, .tif, .webp, .bmp, ...) but what predict has written"
        raise UserError("empty", root, said)
    return images, others


def find_inputs(
    source: str,
    leave_out: str | os.PathLike[str] | None = None,
    suffixes: Sequence[str] = (),
) -> tuple[list[str], list[Path]]:
    """The images that an argument names: a file, an address, a folder, or a pattern with ``*``.

    A folder ``leave_out`` below it is not searched; ``suffixes`` as of :func:`find_images`.

    Returns:
        Paths and addresses; and the other files of a folder, or the folders that match a pattern.

    Raises:
        UserError: No image was found.
    """
    if is_address(source) or os.path.isfile(source):
        return [source], []
    if os.path.isdir(source):
        images, others = find_images(source, leave_out, suffixes)
        return [os.fspath(image) for image in images], others
    if os.path.lexists(source):
        raise UserError("not-found", source, "is a link to a file that does not exist")
    if not glob.has_magic(source):
        raise UserError("not-found", source, _MISSING)
    without = None if leave_out is None else os.path.realpath(leave_out) + os.sep
    begin = source
    while glob.has_magic(begin):
        begin = os.path.dirname(begin)
    if without and (os.path.realpath(begin) + os.sep).startswith(without):
        without = None  # it was asked for what is there
    written = _Written()
    matches = [
        path
        for path in sorted(glob.glob(source, recursive=True))
        if not (without and (os.path.realpath(path) + os.sep).startswith(without))
        and path not in written
    ]
    found = [path for path in matches if _may_be_read(path)]
    if not found:
        raise UserError("not-found", source, "no file matches this pattern")
    return found, [Path(path) for path in matches if not _may_be_read(path)]


def _may_be_read(path: str | os.PathLike[str]) -> bool:
    """Whether it is a file or a broken link, of which the reader says so; no folder, no pipe."""
    return os.path.isfile(path) or not os.path.exists(path)


def read_image(image: ImageInput) -> tuple[NDArray[np.uint8], str | None]:
    """The pixels of an image as a picture, and its path or address if it has one.

    Args:
        image: See :data:`ImageInput`. Files and PIL images are turned as their EXIF orientation
            says; alpha is dropped; 16 bits become 8.

    Returns:
        (H, W, 3) RGB, uint8; and the path.

    Raises:
        UserError: It cannot be read or decoded, or is too large.
    """
    found = ImageReader().read(image)
    return found.picture, found.path
