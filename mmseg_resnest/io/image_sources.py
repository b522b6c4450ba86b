# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The bytes of image files and addresses, within bounds that are checked before decoding."""

from __future__ import annotations

import io
import os
from typing import Any

from ..errors import UserError
from .http import fetch_bytes
from .image_header import read_header

__all__ = ["fetch_image", "image_size", "is_address", "is_bytes", "read_bytes", "read_image_file"]

#: The most pixels of an image that is decoded as a whole: 1.5 GiB of RGB. More than Pillow's own
#: limit; checked in the file's header before anything is decoded.
MAX_PIXELS = 1 << 29
#: The most bytes that are fetched from an address.
MAX_DOWNLOAD = 256 << 20
#: Seconds to wait for a server's next bytes, and for a whole image.
_TIMEOUTS = (30.0, 300.0)


def is_address(source: object) -> bool:
    """Whether it is the http or https address of an image."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


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


def fetch_image(address: str) -> bytes:
    """The bytes of an image file at an address.

    Raises:
        UserError: It cannot be fetched, is empty, or has more bytes or pixels than are taken.
    """
    data = fetch_bytes(address, address, MAX_DOWNLOAD, *_TIMEOUTS)
    if not data:
        raise UserError("empty", address, "the file is empty")
    _check_size(image_size(io.BytesIO(data)), address)
    return data


def _check_size(size: tuple[int, int] | None, name: str) -> None:
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            "too-large",
            name,
            f"{size[1]}x{size[0]} pixels exceed the {MAX_PIXELS:,} that are decoded at once; "
            "convert it to a TIFF, uncompressed or with deflate, which predict reads in parts",
        )


def read_image_file(path: str, most: int = -1) -> bytes:
    """The bytes of an image file, or the first ones.

    Raises:
        UserError: It cannot be read, is empty, or has more pixels than are decoded at once.
    """
    _check_size(image_size(path), path)
    try:
        with open(path, "rb") as file:
            data = file.read(most)
    except OSError as error:
        code = "not-found" if isinstance(error, FileNotFoundError) else "unreadable"
        raise UserError(code, path, f"the image cannot be read ({error.strerror})") from error
    if not data:
        raise UserError("empty", path, "the file is empty; copy it again")
    return data


def is_bytes(source: object) -> bool:
    """Whether it is the bytes of a file, or an open one."""
    return isinstance(source, bytes | bytearray | memoryview) or hasattr(source, "read")


def read_bytes(source: Any) -> tuple[bytes, str | None]:
    """The bytes of an image file, and the path where an open file has one.

    Args:
        source: The bytes, or a file that is open for reading bytes; it is read from where it
            stands to its end, and stays open.

    Raises:
        UserError: It cannot be read, is empty, gives text, or has more pixels than are decoded at
            once.
    """
    path, subject = None, "image bytes"
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        path = name if isinstance(name, str) and os.path.isfile(name) else None
        subject = f"image file {path or ''}".strip()
        try:
            source = source.read()
        except (OSError, ValueError) as error:  # closed, or open for writing
            reason = getattr(error, "strerror", None) or error
            raise UserError("unreadable", subject, f"cannot be read ({reason})") from error
        if not isinstance(source, bytes | bytearray | memoryview):
            said = f"its read() gives {type(source).__name__}, not bytes; open it with mode 'rb'"
            raise UserError("input", subject, said)
    data = bytes(source)
    if not data:
        raise UserError("empty", subject, "holds no bytes; to read a file again, call its seek(0)")
    _check_size(image_size(io.BytesIO(data)), subject)
    return data, path
