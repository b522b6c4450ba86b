# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Reading and decoding the files of a data set.

PNG files take most of the time of a training pipeline: label maps come in them, and Cityscapes'
images. kornia-rs (the extra ``fast``) decodes the usual kinds in less than half of OpenCV's time.
Other kinds and damaged files are left to OpenCV and Pillow. The pixels are the same.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any

import cv2
import mmcv
import numpy as np
import numpy.typing as npt
from mmengine import fileio

from ..io.tiled_tiff import readable

try:
    from kornia_rs.io import decode_image_png_u8 as decode_rust
except ImportError:
    decode_rust = None


Pixels = npt.NDArray[np.uint8]

_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3  # PNG's colour types
# Chunks that leave the pixels as they are. eXIf is not among them: OpenCV rotates by it.
_HARMLESS = frozenset(b"IHDR PLTE IDAT IEND tEXt zTXt iTXt tIME pHYs sRGB gAMA cHRM bKGD".split())
_MAX_BYTES = 2**28  # of pixels; above, OpenCV's and Pillow's own limits apply


def read_bytes(path: str, backend_args: dict | None) -> bytes:
    """A file's bytes, read by MMEngine where it is not local or cannot be opened."""
    data = None if backend_args else read_local(path)
    return fileio.get(path, backend_args=backend_args) if data is None else data


def read_local(path: str | os.PathLike[str]) -> bytes | None:
    """A file's bytes; None for a URL or a file that cannot be opened, which MMEngine then reads."""
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
    pixels = decode_png(data, _RGB) if decode_rust else None
    if pixels is not None:
        return pixels
    return mmcv.imfrombytes(readable(data), flag="color", backend="cv2")


def decode_grey(data: bytes) -> Pixels:
    """An image file's pixels (H, W), as ``LoadImageFromFile`` gives them with ``grayscale``."""
    return mmcv.imfrombytes(readable(data), flag="grayscale", backend="cv2")


def decode_label(data: bytes) -> Pixels:
    """A label file's values (H, W), as ``LoadAnnotations`` reads them by default.

    OpenCV takes half of Pillow's time for an 8-bit grey PNG; a palette stays indices.
    """
    pixels = decode_png(data, _GREY, _PALETTE)
    if pixels is None:
        loaded = mmcv.imfrombytes(data, flag="unchanged", backend="pillow")
        pixels = loaded.squeeze().astype(np.uint8)
    return pixels


def decode_png(data: bytes, *colour_types: int) -> Pixels | None:
    """The pixels (H, W), or (H, W, 3) BGR, of an intact, ordinary 8-bit PNG file.

    None where another library must read the file: it is not of one of the colour types (0 grey,
    2 RGB, 3 palette), damaged, interlaced, transparent, a palette without kornia-rs, or holds a
    chunk that may change the pixels.
    """
    if data[:8] != _PNG or data[8:16] != b"\0\0\0\rIHDR" or len(data) < 33:
        return None
    width, height, bits, colour, *methods = struct.unpack(">IIBBBBB", data[16:29])
    channels = 3 if colour == _RGB else 1
    if colour not in colour_types or bits != 8 or any(methods):
        return None
    if not 0 < width * height * channels < _MAX_BYTES or not _is_intact(data):
        return None
    if decode_rust is None:
        if colour == _PALETTE:
            return None
        flag = cv2.IMREAD_COLOR if colour == _RGB else cv2.IMREAD_UNCHANGED
        decoded: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        return decoded
    try:
        pixels = decode_rust(bytes(data), (height, width), "rgb" if channels == 3 else "mono")
    except Exception:  # the library raises plain exceptions
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if channels == 3 else pixels[:, :, 0]


def _is_intact(data: bytes) -> bool:
    """Whether a PNG file has its end, right checksums and harmless chunks alone."""
    start = len(_PNG)
    while start + 12 <= len(data):
        name = bytes(data[start + 4 : start + 8])
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        checksum = int.from_bytes(data[end : end + 4], "big")
        if name not in _HARMLESS or zlib.crc32(data[start + 4 : end]) != checksum:
            return False
        if name == b"IEND":
            return True
        start = end + 4
    return False
