# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images as pixels: from files, addresses, PIL images, arrays and tensors, and rows of files."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from ..io.http import fetch_bytes
from ..io.image_files import IMAGE_SUFFIXES, decode_rgb, read_rgb
from ..io.image_header import read_header

__all__ = [
    "ImageInput",
    "RowSource",
    "find_images",
    "image_size",
    "is_address",
    "open_rows",
    "read_image",
    "tensor_images",
]

ImageInput = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | Tensor
"""A path, an address (http, https), a PIL image, an array (H, W), (H, W, 3) or (H, W, 4) of uint8
(grey, RGB, RGB and alpha), or a tensor (3, H, W), RGB: uint8, or floating in [0, 1]."""

#: The most pixels of an image that is decoded as a whole: 1.5 GiB of RGB. More than Pillow's own
#: limit, on purpose, and checked in the file's header before anything is decoded.
MAX_PIXELS = 1 << 29
#: The most bytes that are fetched from an address.
MAX_DOWNLOAD = 256 << 20
_TIMEOUT = 30.0
#: Seconds that fetching an image may take.
_LONGEST = 300.0


def is_address(source: object) -> bool:
    """Whether it is the http or https address of an image."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def find_images(
    source: str | os.PathLike[str], leave_out: str | os.PathLike[str] | None = None
) -> tuple[list[Path], list[Path]]:
    """The images of a folder and its subfolders, and the files that are none.

    Hidden files and folders are passed over.

    Args:
        source: The folder.
        leave_out: A folder below it that is not searched.

    Raises:
        UserError: ``source`` is no folder, or holds no image.
    """
    root = Path(source)
    if not root.is_dir():
        raise UserError(
            "not-found", f"image {root}", "does not exist; name an image file or a folder of images"
        )
    without = None if leave_out is None else Path(leave_out).resolve()
    images: list[Path] = []
    others: list[Path] = []
    for folder, folders, names in os.walk(root):
        # In place, so that walk leaves them out: hidden ones (.git, .thumbnails, ...) and ours.
        folders[:] = sorted(
            f for f in folders if f[0] != "." and Path(folder, f).resolve() != without
        )
        for name in sorted(n for n in names if n[0] != "."):
            file = Path(folder, name)
            (images if file.suffix.lower() in IMAGE_SUFFIXES else others).append(file)
    if not images:
        raise UserError(
            "input", f"folder {root}", "holds no image (.jpg, .png, .tif, .webp, .bmp, ...)"
        )
    return images, others


def image_size(source: str | os.PathLike[str] | io.BytesIO) -> tuple[int, int] | None:
    """Height and width as the header says, before any EXIF rotation.

    Returns:
        None if the file has no header of a known format, or cannot be read.

    Raises:
        UserError: The header is made of very many parts.
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
            f"image {name}",
            f"{size[1]}x{size[0]} pixels are more than can be decoded at once "
            f"({MAX_PIXELS:,}); convert it to a TIFF that is uncompressed or tiled with deflate "
            "compression, which mmseg-resnest predict reads in parts",
        )


def read_image(image: ImageInput) -> tuple[NDArray[np.uint8], str | None]:
    """The pixels of an image, and its path or address if it has one.

    Args:
        image: See :data:`ImageInput`. Files and PIL images are turned as their EXIF orientation
            says; alpha is dropped; 16 bits become 8.

    Returns:
        (H, W, 3) RGB, uint8; and the path.

    Raises:
        UserError: It cannot be read, is none, or is too large.
    """
    if is_address(image):
        address = str(image)
        data = fetch_bytes(address, f"image {address}", MAX_DOWNLOAD, _TIMEOUT, _LONGEST)
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
            raise UserError(
                "size-mismatch",
                "",
                f"a tensor of one image has shape (3, H, W), not {tuple(image.shape)}",
            )
        return images[0], None
    if not isinstance(image, np.ndarray):
        raise UserError(
            "input",
            "",
            "an image is a path, an address, a PIL image, an array or a tensor, not "
            f"{type(image).__name__}",
        )
    return _from_array(image), None


def _from_pil(image: Image.Image) -> NDArray[np.uint8]:
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16"):
        wide = np.asarray(turned).astype(np.uint16)
        return _from_array((wide >> 8).astype(np.uint8))
    if turned.mode in ("I", "F"):
        raise UserError(
            "input",
            f"a PIL image of mode {turned.mode} has no fixed range",
            "convert it to RGB or L first",
        )
    return np.asarray(turned.convert("RGB")).copy()


def _from_array(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8:
        raise UserError("input", "", f"an image array holds uint8 values 0..255, not {image.dtype}")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or not image.size:
        raise UserError(
            "size-mismatch",
            "",
            f"an image array has shape (H, W), (H, W, 3) or (H, W, 4), not {image.shape}",
        )
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
        raise UserError(
            "size-mismatch",
            "",
            f"an image tensor has shape (3, H, W) or (N, 3, H, W), not {tuple(tensor.shape)}",
        )
    if batch.is_floating_point():
        low, high = (float(v) for v in batch.aminmax())
        if not (low >= 0 and high <= 1):
            raise UserError(
                "input",
                "",
                f"an image tensor of {batch.dtype} holds values in [0, 1], not {low:g}..{high:g}; "
                "give the image as it is, not normalised",
            )
        batch = (batch.float() * 255).round().byte()
    elif str(batch.dtype) != "torch.uint8":
        raise UserError(
            "input", "", f"an image tensor holds uint8 or floating values, not {batch.dtype}"
        )
    arrays = batch.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return list(arrays)


# --- rows of large files ---------------------------------------------------------------------


class RowSource(Protocol):
    """An image that is read in parts."""

    height: int
    width: int
    in_parts: bool  # whether reading some rows leaves the others on the disk

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        """Rows ``top`` to ``bottom``, (bottom - top, W, 3) RGB of uint8."""
        ...


class _ArrayRows:
    """The rows of an image that was decoded as a whole."""

    in_parts = False

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.height, self.width = array.shape[:2]
        self._array = array

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        return self._array[top:bottom]


class _RawRows:
    """The rows of an uncompressed file; read, not mapped, so that they do not stay in memory."""

    in_parts = True

    def __init__(self, path: str, offset: int, dtype: str, shape: tuple[int, int, int]) -> None:
        self.height, self.width, self._samples = shape
        self._path, self._offset, self._dtype = path, offset, np.dtype(dtype)
        if os.path.getsize(path) < offset + int(np.prod(shape)) * self._dtype.itemsize:
            raise ValueError("shorter than its header says")

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        row = self.width * self._samples
        start = self._offset + top * row * self._dtype.itemsize
        band = np.fromfile(self._path, self._dtype, (bottom - top) * row, offset=start)
        return _eight_bits(band.reshape(bottom - top, self.width, self._samples))


class _TiffRows:
    """The rows of a compressed TIFF, of which only the strips or tiles that hold them are read."""

    in_parts = True

    def __init__(self, path: str, page: tifffile.TiffPage) -> None:
        self._path = path
        self._page = page
        self.height, self.width = page.imagelength, page.imagewidth
        self._rows = page.tilelength if page.is_tiled else page.rowsperstrip
        self._columns = -(-self.width // page.tilewidth) if page.is_tiled else 1

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        page = self._page
        shape = (bottom - top, self.width, page.samplesperpixel)
        band = np.zeros(shape, page.dtype)
        with open(self._path, "rb") as file:
            for row in range(top // self._rows, -(-bottom // self._rows)):
                for index in range(row * self._columns, (row + 1) * self._columns):
                    file.seek(page.dataoffsets[index])
                    data = file.read(page.databytecounts[index])
                    try:
                        segment, place, size = page.decode(data, index)
                    except Exception as error:  # whatever the codec raises
                        raise UserError(
                            "corrupt",
                            f"image {self._path}",
                            f"is broken around row {row * self._rows} ({error})",
                        ) from error
                    if segment is None:  # left out of a sparse file
                        continue
                    y, x = place[2], place[3]
                    part = segment[0, : size[1], : min(size[2], self.width - x)]
                    low, high = max(top, y), min(bottom, y + part.shape[0])
                    band[low - top : high - top, x : x + part.shape[1]] = part[low - y : high - y]
        return _eight_bits(band)


def _eight_bits(band: NDArray[Any]) -> NDArray[np.uint8]:
    """Rows of 1 to 4 samples of 8 or 16 bits, as RGB of 8 bits."""
    if band.dtype.kind == "u" and band.dtype.itemsize == 2:
        band = (band >> 8).astype(np.uint8)
    if band.ndim == 2:
        band = band[:, :, None]
    if band.shape[2] < 3:  # grey, or grey and alpha
        band = np.repeat(band[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(band[:, :, :3]).astype(np.uint8, copy=False)


def open_rows(path: str | os.PathLike[str]) -> RowSource:
    """Open an image to read rows of it.

    TIFF (uncompressed, or with deflate in strips or tiles) and binary PPM and PGM are read in
    parts. Other files are decoded as a whole, which takes 3 bytes a pixel.

    Args:
        path: The file.

    Raises:
        UserError: It cannot be read, is no image, or is too large to be decoded as a whole.
    """
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    rows: RowSource | None = None
    try:
        if suffix in (".tif", ".tiff"):
            rows = _open_tiff(name)
        elif suffix in (".ppm", ".pgm"):
            rows = _open_netpbm(name)
    except (OSError, ValueError, KeyError, IndexError, tifffile.TiffFileError):
        rows = None  # the decoder below says what is wrong with it
    return rows or _ArrayRows(read_image(path)[0])


def _open_tiff(path: str) -> RowSource | None:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        orientation = page.tags.get(274)
        plain = (
            page.dtype in (np.uint8, np.uint16)
            and page.bitspersample in (8, 16)
            and int(page.photometric) in (1, 2)  # black is 0; RGB
            and (int(page.planarconfig) == 1 or page.samplesperpixel == 1)
            and page.imagedepth == 1
            and (orientation is None or int(orientation.value) == 1)
        )
        if not plain:
            return None
        if page.is_memmappable:
            shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
            kind = file.byteorder + page.dtype.str[1:]
            return _RawRows(path, page.dataoffsets[0], kind, shape)
        if int(page.compression) not in (1, 8, 32946):
            return None
        page.decode(None, 0)  # makes the decoder while the file is open; fails if it has none
        return _TiffRows(path, page)


def _open_netpbm(path: str) -> RowSource | None:
    with open(path, "rb") as file:
        words: list[bytes] = []
        while len(words) < 4:
            line = file.readline(4096)
            if not line:
                return None
            words += line.split(b"#")[0].split()
        kind, width, height, top = words[0], *(int(w) for w in words[1:4])
        offset = file.tell()
    samples = {b"P5": 1, b"P6": 3}.get(kind)
    if samples is None or top != 255 or len(words) != 4:
        return None
    return _RawRows(path, offset, "u1", (height, width, samples))
