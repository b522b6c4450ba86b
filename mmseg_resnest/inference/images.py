# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Finding images, and reading them: files, addresses, PIL images, arrays and tensors."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from ..io.http import fetch_bytes
from ..io.image_files import IMAGE_SUFFIXES, decode_rgb, read_rgb
from ..io.image_header import read_header
from ..io.up_to_date import Journal
from ..io.walk import walk

__all__ = [
    "RECORD",
    "ImageInput",
    "find_images",
    "find_inputs",
    "image_size",
    "is_address",
    "read_image",
    "tensor_images",
]

ImageInput = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | Tensor
"""A path, an address (http, https), a PIL image, an array (H, W), (H, W, 3) or (H, W, 4) of uint8
(grey, RGB, RGB and alpha), or a tensor (3, H, W), RGB: uint8, or floating in [0, 1]."""

#: The journal in an output folder.
RECORD = "predictions.jsonl"
#: The most pixels of an image that is decoded as a whole: 1.5 GiB of RGB. More than Pillow's own
#: limit; checked in the file's header before anything is decoded.
MAX_PIXELS = 1 << 29
#: The most bytes that are fetched from an address.
MAX_DOWNLOAD = 256 << 20
#: Seconds to wait for a server's next bytes, and for a whole image.
_TIMEOUTS = (30.0, 300.0)
_MISSING = "does not exist; name an image file or a folder of images"


def is_address(source: object) -> bool:
    """Whether it is the http or https address of an image."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


class _Written:
    """What predictions have written, by the records in their folders: it is no input."""

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
    source: str | os.PathLike[str], leave_out: str | os.PathLike[str] | None = None
) -> tuple[list[Path], list[Path]]:
    """The images of a folder and its subfolders, and its other files; hidden ones are left out.

    Links are followed. What predictions have written is no image, nor another file. A folder that
    cannot be listed counts as an image, which cannot be read.

    Args:
        source: The folder.
        leave_out: A folder below it that is not searched.

    Raises:
        UserError: ``source`` is not a folder, or holds no image.
    """
    root = Path(source)
    if not root.is_dir():
        raise UserError("not-found", root, _MISSING)
    without = None if leave_out is None else Path(leave_out).resolve()
    images: list[Path] = []
    others: list[Path] = []
    written = _Written()
    for folder, folders, names in walk(root, unreadable=lambda path, _: images.append(Path(path))):
        # In place, so that walk leaves them out.
        folders[:] = [f for f in folders if f[0] != "." and Path(folder, f).resolve() != without]
        for file in (Path(folder, name) for name in names if name[0] != "."):
            image = file.suffix.lower() in IMAGE_SUFFIXES and _may_be_read(file)
            if file not in written:
                (images if image else others).append(file)
    if not images:
        said = "holds no image (.jpg, .png, .tif, .webp, .bmp, ...) but what predict has written"
        raise UserError("empty", root, said)
    return images, others


def find_inputs(
    source: str, leave_out: str | os.PathLike[str] | None = None
) -> tuple[list[str], list[Path]]:
    """The images that an argument names: a file, an address, a folder, or a pattern with ``*``.

    A folder ``leave_out`` is not searched.

    Returns:
        Paths and addresses; and the other files of a folder, or the folders that match a pattern.

    Raises:
        UserError: No image was found.
    """
    if is_address(source) or os.path.isfile(source):
        return [source], []
    if os.path.isdir(source):
        images, others = find_images(source, leave_out)
        return [os.fspath(image) for image in images], others
    if os.path.lexists(source):
        raise UserError("not-found", source, "is a link to a file that does not exist")
    if not glob.has_magic(source):
        raise UserError("not-found", source, _MISSING)
    without = None if leave_out is None else os.path.realpath(leave_out) + os.sep
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


def image_size(source: str | os.PathLike[str] | io.BytesIO) -> tuple[int, int] | None:
    """Height and width as the header says, before any EXIF rotation.

    None if the file has no header of a known format, or cannot be read; UserError if the header
    has too many parts.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "in memory"
    try:
        header = read_header(source, name)
    except OSError:
        return None
    return None if header is None else (header.height, header.width)


def _check_size(size: tuple[int, int] | None, name: str) -> None:
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            "too-large",
            name,
            f"{size[1]}x{size[0]} pixels exceed the {MAX_PIXELS:,} that are decoded at once; "
            "convert it to a TIFF, uncompressed or with deflate, which predict reads in parts",
        )


def read_image(image: ImageInput) -> tuple[NDArray[np.uint8], str | None]:
    """The pixels of an image, and its path or address if it has one.

    Args:
        image: See :data:`ImageInput`. Files and PIL images are turned as their EXIF orientation
            says; alpha is dropped; 16 bits become 8.

    Returns:
        (H, W, 3) RGB, uint8; and the path.

    Raises:
        UserError: It cannot be read or decoded, or is too large.
    """
    if is_address(image):
        address = str(image)
        data = fetch_bytes(address, address, MAX_DOWNLOAD, *_TIMEOUTS)
        _check_size(image_size(io.BytesIO(data)), address)
        return decode_rgb(data, address), address
    if isinstance(image, str | os.PathLike):
        _check_size(image_size(image), os.fspath(image))
        return read_rgb(image), os.fspath(image)
    if isinstance(image, Image.Image):
        return _from_pil(image), None
    if isinstance(image, Tensor):
        images = tensor_images(image)
        if len(images) != 1:
            raise _wrong_shape("tensor", "(3, H, W)", image.shape)
        return images[0], None
    if not isinstance(image, np.ndarray):
        said = "must be a path, an address, a PIL image, an array or a tensor, not "
        raise UserError("input", "image", said + type(image).__name__)
    return _from_array(image), None


def _wrong_shape(kind: str, expected: str, found: Sequence[int]) -> UserError:
    return UserError("input", f"image {kind}", f"must have shape {expected}, not {tuple(found)}")


def _from_pil(image: Image.Image) -> NDArray[np.uint8]:
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16"):
        return _from_array((np.asarray(turned).astype(np.uint16) >> 8).astype(np.uint8))
    if turned.mode in ("I", "F"):
        raise UserError("input", f"PIL image of mode {turned.mode}", "convert it to RGB or L first")
    return np.asarray(turned.convert("RGB")).copy()


def _from_array(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8:
        raise UserError("input", "image array", f"must hold uint8 values, not {image.dtype}")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or not image.size:
        raise _wrong_shape("array", "(H, W), (H, W, 3) or (H, W, 4)", image.shape)
    return np.ascontiguousarray(image[:, :, :3])


def tensor_images(tensor: Tensor) -> list[NDArray[np.uint8]]:
    """The images of a tensor.

    Args:
        tensor: (3, H, W) or (N, 3, H, W), RGB: uint8, or floating in [0, 1].

    Returns:
        (H, W, 3) arrays of uint8; floating values are rounded to 8 bits.

    Raises:
        UserError: Another shape, type or range.
    """
    batch = tensor.detach()
    batch = batch[None] if batch.ndim == 3 else batch
    if batch.ndim != 4 or batch.shape[1] != 3 or not batch.numel():
        raise _wrong_shape("tensor", "(3, H, W) or (N, 3, H, W)", tensor.shape)
    if batch.is_floating_point():
        low, high = (float(v) for v in batch.aminmax())
        if not (low >= 0 and high <= 1):
            said = f"floating values must lie in [0, 1], not {low:g}..{high:g}; do not normalise it"
            raise UserError("input", "image tensor", said)
        batch = (batch.float() * 255).round().byte()
    elif batch.dtype != torch.uint8:
        said = f"must hold uint8 or floating values, not {batch.dtype}"
        raise UserError("input", "image tensor", said)
    return list(batch.permute(0, 2, 3, 1).contiguous().cpu().numpy())
