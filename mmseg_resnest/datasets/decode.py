# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Reading and decoding the files of a data set.

PNG files, in which label maps come, and Cityscapes' images, take most of the time of a training
pipeline. Where Numba's loops are loaded (:mod:`mmseg_resnest.kernels.compiled`) they undo the
filters, and ISA-L unpacks where it is installed; what is not of the usual kind is OpenCV's or
Pillow's.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from types import ModuleType

import cv2
import mmcv
import numpy as np
import numpy.typing as npt
from mmengine.logging import print_log

from ..kernels.compiled import loaded_loops

inflate: ModuleType
try:
    from isal import isal_zlib as inflate
except ImportError:
    inflate = zlib

__all__ = ["decode_image", "decode_label", "decode_png", "read_local", "tell_what_unpacks"]

Pixels = npt.NDArray[np.uint8]

_PNG = b"\x89PNG\r\n\x1a\n"
# Parts of a PNG file that leave the pixels as they are: OpenCV turns an image by eXIf, say.
_HARMLESS = frozenset(b"IHDR PLTE IDAT IEND tEXt zTXt iTXt tIME pHYs sRGB gAMA cHRM bKGD".split())
# Bytes of an image from which on OpenCV's and Pillow's limits have their say.
_LARGEST = 2**28


def tell_what_unpacks() -> None:
    """Says in one line if zlib unpacks PNG files, because ISA-L is not installed."""
    if inflate is zlib:
        print_log(
            "zlib unpacks PNG files, which takes longer: isal is not installed "
            "(pip install 'mmseg-resnest[fast]')",
            logger="current",
            level=logging.WARNING,
        )


def read_local(path: str | os.PathLike[str]) -> bytes | None:
    """A file's bytes, or None where MMEngine's ways to files have to look, or fail, themselves."""
    path = os.fspath(path)
    if "://" in path:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def decode_image(data: bytes) -> Pixels:
    """An image file's pixels (H, W, 3), BGR, as ``LoadImageFromFile`` gives them by default."""
    quick = decode_png(data, (2,))
    if quick is not None:
        return quick
    pixels: Pixels = mmcv.imfrombytes(data, flag="color", backend="cv2")
    return pixels


def decode_label(data: bytes) -> Pixels:
    """A label file's numbers (H, W), as ``LoadAnnotations`` reads them by default.

    An 8-bit grey PNG is read by OpenCV, in half the time of Pillow, unless :func:`decode_png` does
    it; what OpenCV refuses and every other file by Pillow.
    """
    quick = decode_png(data, (0, 3))
    if quick is not None:
        return quick
    if data[:8] == _PNG and data[12:16] == b"IHDR" and data[24:26] == b"\x08\x00" and _whole(data):
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if grey is not None and grey.ndim == 2 and grey.dtype == np.uint8:
            return grey.astype(np.uint8, copy=False)
    loaded = mmcv.imfrombytes(data, flag="unchanged", backend="pillow")
    pixels: Pixels = loaded.squeeze().astype(np.uint8)
    return pixels


def _whole(data: bytes) -> bool:
    """Whether a PNG file has its end and right check sums: OpenCV shows what it finds."""
    place = len(_PNG)
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if data[place + 4 : place + 8] == b"IEND":
            return True
        place = end + 4
    return False


def decode_png(data: bytes, kinds: tuple[int, ...]) -> Pixels | None:
    """The pixels of the usual kinds of PNG files, by compiled loops: in less than half the time.

    Args:
        data: The file.
        kinds: PNG's colour types that are wanted: 0 is grey, 2 red, green and blue, 3 numbers of
            a palette, which stay numbers.

    Returns:
        (H, W), or (H, W, 3) in the order BGR, equal to what OpenCV or Pillow reads. None where
        they have to read the file: no loops are loaded, another kind of file, less or more than 8
        bits, interlacing, transparency or other things that may change the pixels, a broken file.
    """
    loops = loaded_loops()
    if loops is None or data[:8] != _PNG or data[8:16] != b"\0\0\0\rIHDR" or len(data) < 33:
        return None
    width, height, bits, kind, *ways = struct.unpack(">IIBBBBB", data[16:29])
    channels = 3 if kind == 2 else 1
    expected = height * (1 + width * channels)
    if kind not in kinds or bits != 8 or any(ways) or not 0 < expected < _LARGEST or not width:
        return None
    parts = _pixel_parts(data)
    if parts is None:
        return None
    stream = inflate.decompressobj()
    try:
        filtered = stream.decompress(b"".join(parts), expected + 1)
    except inflate.error:
        return None
    if len(filtered) != expected or not stream.eof:
        return None
    rows = np.empty((height, width * channels), np.uint8)
    if not loops.unfilter(filtered, rows, channels):
        return None
    return rows if channels == 1 else rows.reshape(height, width, 3)


def _pixel_parts(data: bytes) -> list[bytes] | None:
    """The parts of a PNG file that hold pixels; None unless all is right, and nothing unusual."""
    parts = []
    place = len(_PNG)
    while place + 12 <= len(data):
        name = bytes(data[place + 4 : place + 8])
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if name not in _HARMLESS:
            return None
        if inflate.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return None
        if name == b"IDAT":
            parts.append(data[place + 8 : end])
        elif name == b"IEND":
            return parts
        place = end + 4
    return None
