# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Rows of large image files, without decoding the whole file where its format allows that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..datasets.reader import ImageReader
from ..errors import UserError

__all__ = ["RowSource", "open_rows"]

_UNASSOCIATED = 2  # a TIFF's extra sample: alpha that the colours have not been multiplied by


class RowSource(Protocol):
    """An image that is read in parts."""

    height: int
    width: int

    def read(self, top: int, bottom: int) -> NDArray[Any]:
        """Rows ``top`` to ``bottom``, as the reader loads them."""


class _ArrayRows:
    """The rows of an image that was decoded as a whole."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.height, self.width = array.shape[:2]
        self._array = array

    def read(self, top: int, bottom: int) -> NDArray[Any]:
        return self._array[top:bottom]


class _RawRows:
    """The rows of an uncompressed file; read, not mapped, so that they do not stay in memory."""

    def __init__(
        self, path: str, offset: int, dtype: str, shape: tuple[int, int, int], alpha: bool = False
    ) -> None:
        self.height, self.width, self._samples = shape
        self._path, self._offset, self._dtype = path, offset, np.dtype(dtype)
        self._alpha = alpha
        if os.path.getsize(path) < offset + int(np.prod(shape)) * self._dtype.itemsize:
            raise ValueError("shorter than its header says")

    def read(self, top: int, bottom: int) -> NDArray[np.uint8]:
        row = self.width * self._samples
        start = self._offset + top * row * self._dtype.itemsize
        band = np.fromfile(self._path, self._dtype, (bottom - top) * row, offset=start)
        return _eight_bits(band.reshape(bottom - top, self.width, self._samples), self._alpha)


class _TiffRows:
    """The rows of a compressed TIFF; only the strips or tiles that hold them are read."""

    def __init__(self, path: str, page: tifffile.TiffPage, alpha: bool) -> None:
        self._path = path
        self._page = page
        self._alpha = alpha
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
                        damaged = f"damaged near row {row * self._rows} ({error})"
                        raise UserError("corrupt", self._path, damaged) from error
                    if segment is None:  # left out of a sparse file
                        continue
                    y, x = place[2], place[3]
                    part = segment[0, : size[1], : min(size[2], self.width - x)]
                    low, high = max(top, y), min(bottom, y + part.shape[0])
                    band[low - top : high - top, x : x + part.shape[1]] = part[low - y : high - y]
        return _eight_bits(band, self._alpha)


def _eight_bits(band: NDArray[Any], alpha: bool) -> NDArray[np.uint8]:
    """Rows of 1 to 4 samples of 8 or 16 bits, as BGR of 8 bits, to the last bit as OpenCV has them.

    ``alpha``: the fourth sample is one that colours are multiplied by (libtiff's ``getimage.c``).
    """
    grey = band.shape[2] < 3  # grey, or grey and alpha
    if band.dtype.itemsize == 2:
        band = (band >> 8 if grey else (band.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if alpha:
        band = (band[:, :, :3].astype(np.uint16) * band[:, :, 3:] + 127) // 255
    band = np.repeat(band[:, :, :1], 3, axis=2) if grey else band[:, :, 2::-1]
    return np.ascontiguousarray(band).astype(np.uint8, copy=False)


def open_rows(path: str | os.PathLike[str], reader: ImageReader) -> RowSource:
    """Open an image to read rows of it.

    Where the reader loads images by default, TIFF (uncompressed, or with deflate in strips or
    tiles) and binary PPM and PGM are read in parts. Other files are decoded as a whole, which takes
    3 bytes a pixel.

    Raises:
        UserError: It cannot be read or decoded, or is too large to be decoded as a whole.
    """
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    rows: RowSource | None = None
    try:
        if suffix in (".tif", ".tiff") and reader.is_default:
            rows = _open_tiff(name)
        elif reader.is_default and suffix in (".ppm", ".pgm"):
            rows = _open_netpbm(name)
    except (OSError, ValueError, KeyError, IndexError, tifffile.TiffFileError):
        rows = None  # the reader says what is wrong with it
    return rows or _ArrayRows(reader.read(path).pixels)


def _open_tiff(path: str) -> RowSource | None:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        orientation = page.tags.get(274)
        plain = (
            page.dtype in (np.uint8, np.uint16)
            and page.bitspersample in (8, 16)
            # Grey, black being 0, or RGB; several grey bands are no colours.
            and (int(page.photometric), page.samplesperpixel > 2) in ((1, False), (2, True))
            and (int(page.planarconfig) == 1 or page.samplesperpixel == 1)
            and page.imagedepth == 1
            and page.samplesperpixel <= 4
            and (orientation is None or int(orientation.value) == 1)
        )
        if not plain:
            return None
        alpha = page.samplesperpixel == 4 and _UNASSOCIATED in page.extrasamples
        if page.is_memmappable:
            shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
            kind = file.byteorder + page.dtype.str[1:]
            return _RawRows(path, page.dataoffsets[0], kind, shape, alpha)
        if int(page.compression) not in (1, 8, 32946):
            return None
        page.decode(None, 0)  # makes the decoder while the file is open; fails if it has none
        return _TiffRows(path, page, alpha)


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
