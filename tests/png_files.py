# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""PNG files that no library writes: of few bits, with odd chunks, of any claimed size."""

import struct
import zlib


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_file(
    width: int,
    height: int,
    rows: bytes,
    bits: int = 8,
    colour: int = 0,
    extra: bytes = b"",
    parts: int = 1,
) -> bytes:
    """A file whose rows, each with the number of its filter, are in several parts."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    packed = zlib.compress(rows, 9)
    size = -(-len(packed) // parts)
    body = b"".join(chunk(b"IDAT", packed[i : i + size]) for i in range(0, len(packed), size))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")
