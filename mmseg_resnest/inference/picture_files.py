# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What image files say beside their pixels, and label maps that are written row by row."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..io.image_header import count_pages, open_any_size
from ..io.image_sources import is_address

__all__ = ["Metadata", "PngRows", "read_metadata"]

# Title, make, model, software, date, artist, copyright; not how pixels are stored.
_EXIF_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
_EXIF_FOLDERS = (0x8769, 0x8825)  # camera settings, GPS
_GEO_TAGS = (33550, 33922, 34264, 34735)  # GeoTIFF
# What a JPEG holds, which pictures may be: 16 bits, and bytes of a segment.
_MOST_DPI, _MOST_EXIF = 65_535, 65_533
_ANIMATIONS = ("GIF", "PNG", "WEBP")


@dataclass(frozen=True)
class Metadata:
    """What an image file says beside its pixels, as options of Pillow's ``save``."""

    picture: dict[str, Any] = field(default_factory=dict)  # for pictures with its colours
    labels: dict[str, Any] = field(default_factory=dict)  # for label maps, with those of classes
    georeferenced: bool = False  # whether it is a GeoTIFF
    several: bool = False  # whether it is a TIFF of several pages, or an animation


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Read resolution, colour profile and EXIF (author, camera, time, place) of an image file.

    The EXIF orientation is left out: outputs are upright. Nothing is decoded.
    """
    if is_address(path):
        return Metadata()
    try:
        with open_any_size(path) as image, open(path, "rb") as file:
            moves = image.format in _ANIMATIONS and getattr(image, "n_frames", 1) > 1
            return replace(_metadata_of(image), several=moves or count_pages(file) > 1)
    except Exception:  # Pillow raises many kinds; the decoder reports what is wrong
        return Metadata()


def _metadata_of(image: Image.Image) -> Metadata:
    labels: dict[str, Any] = {}
    dpi = image.info.get("dpi")
    if dpi and all(0 < float(d) <= _MOST_DPI for d in dpi):
        labels["dpi"] = (float(dpi[0]), float(dpi[1]))
    source, kept = image.getexif(), Image.Exif()
    for tag in _EXIF_TAGS:
        if tag in source:
            kept[tag] = source[tag]
    for tag in _EXIF_FOLDERS:
        folder = source.get_ifd(tag)
        if folder:
            kept.get_ifd(tag).update(folder)
            kept[tag] = dict(folder)
    if len(kept):
        with contextlib.suppress(Exception):  # Pillow cannot write all that it can read
            labels["exif"] = kept.tobytes()
    picture = {k: v for k, v in labels.items() if k != "exif" or len(v) <= _MOST_EXIF}
    profile = image.info.get("icc_profile")
    if profile and profile[16:20] == b"RGB ":
        picture["icc_profile"] = profile
    tags = getattr(image, "tag_v2", {})
    return Metadata(picture, labels, any(tag in tags for tag in _GEO_TAGS))


class PngRows:
    """Writes a PNG row by row (W3C PNG, third edition); Pillow needs all rows at once.

    It has a palette, or without one is grey, of 8 or 16 bits a pixel (``kind``).
    """

    def __init__(
        self,
        file: IO[bytes],
        size: tuple[int, int],
        palette: Sequence[Sequence[int]] | None,
        metadata: dict[str, Any],
        kind: type[np.integer] = np.uint8,
    ) -> None:
        self._file = file
        self._packer = zlib.compressobj(3)
        self._kind = np.dtype(kind).newbyteorder(">")
        bits, colours = 8 * self._kind.itemsize, 0 if palette is None else 3
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], bits, colours, 0, 0, 0))
        if "dpi" in metadata:
            across, down = (round(d / 0.0254) for d in metadata["dpi"])
            self._chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
        if palette is not None:
            table = np.zeros((256, 3), np.uint8)
            table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
            self._chunk(b"PLTE", table.tobytes())
        if "exif" in metadata:
            self._chunk(b"eXIf", metadata["exif"].removeprefix(b"Exif\x00\x00"))

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind + data)
        self._file.write(struct.pack(">I", zlib.crc32(kind + data)))

    def write(self, rows: NDArray[np.integer]) -> None:
        """Append rows (n, W)."""
        values = np.ascontiguousarray(rows, self._kind).view(np.uint8)
        filtered = np.pad(values, ((0, 0), (1, 0)))  # filter 0 before each row
        data = self._packer.compress(filtered.tobytes())
        if data:
            self._chunk(b"IDAT", data)

    def close(self) -> None:
        """Write the end; the file stays open."""
        self._chunk(b"IDAT", self._packer.flush())
        self._chunk(b"IEND", b"")
