# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Small images in files that are built to take a reader or a decoder long."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 56


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(between: bytes = b"") -> bytes:
    """A grey image with some chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes((WIDTH + 1) * HEIGHT)))
    return b"\x89PNG\r\n\x1a\n" + header + between + rows + chunk(b"IEND")


def saved(kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(data, kind, **options)
    return data.getvalue()


@functools.cache
def packed_texts(number: int) -> bytes:
    """Each text unpacks to 8 MiB, which costs libpng some milliseconds."""
    return png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(8 << 20), 9)) * number)


@functools.cache
def hostile(size: int = 2 << 20) -> dict[str, bytes]:
    """Files of about a size, each within the service's limits on bytes and pixels."""

    def many(part: bytes) -> bytes:
        return part * (size // len(part))

    jpeg, progressive = saved("JPEG"), saved("JPEG", progressive=True)
    scan = progressive.rindex(b"\xff\xda")
    directory = struct.pack("<HHII", 65000, 4, 1, 0)
    return {
        "PNG of empty chunks": png(many(chunk(b"tEXt"))),
        "PNG of unknown chunks": png(many(chunk(b"aaAa"))),
        "PNG of empty IDAT": png(many(chunk(b"IDAT"))),
        "PNG of packed texts": packed_texts(300),
        "JPEG of fill bytes": jpeg[:2] + many(b"\xff") + jpeg[2:],
        "JPEG of garbage": jpeg[:4] + many(b"\0") + jpeg[2:],
        "JPEG of empty segments": jpeg[:2] + many(b"\xff\xe5\0\2") + jpeg[2:],
        "JPEG of restarts": jpeg[:2] + many(b"\xff\xd0") + jpeg[2:],
        "JPEG of scans": progressive[:scan] + many(progressive[scan:-2]) + progressive[-2:],
        "TIFF of tags": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, size // 20) + many(bytes(20)),
        "TIFF of old tags": b"II*\0\x08\0\0\0" + b"\xff\xff" + directory * 65535,
        "PPM of comments": b"P6 " + many(b"#\n"),
        "PPM of one comment": b"P6 #" + many(b"x"),
        "PPM of spaces": b"P6 " + many(b" "),
        "JPEG 2000 of boxes": b"\0\0\0\x0cjP  \r\n\x87\n" + many(b"\0\0\0\x08free"),
        "JPEG 2000 of one box": b"\0\0\0\x0cjP  \r\n\x87\n" + many(b"\0\0\0\0free"),
    }
