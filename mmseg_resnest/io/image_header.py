# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Format and size of an image file from its header, within a budget, without decoding anything.

Pillow reads every chunk of a file before it tells its size: 20 MiB of empty chunks take it seconds,
during which no other thread of the process runs. Here each format costs a few reads.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from PIL import Image

from ..errors import UserError


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of itself; pixels, before any EXIF rotation."""

    format: str  # Pillow's name, such as PNG
    width: int
    height: int


@dataclass(frozen=True)
class HeaderLimits:
    """What reading a header may take; cameras write some hundred segments."""

    bytes: int = 1 << 20  # that are read; what is skipped does not count
    parts: int = 10_000  # segments, boxes, tags or fill bytes
    seconds: float = 2.0  # of the processor; a file that comes slowly is no worse


_LIMITS = HeaderLimits()
# Chunks of a PNG: IDAT chunks hold 8 KiB in most files; small files may have many small ones.
_FREE_CHUNKS = 1000
_BYTES_A_CHUNK = 1024
# Each of these may unpack to 8 MiB; files have a colour profile and a few texts.
_MOST_PACKED = 16
# Encoders write about ten scans; each one is a pass over all pixels.
_MOST_SCANS = 100
_MOST_SCANNED = 1 << 28


class _Spent(Exception):
    """The budget is used up."""


class _Broken(Exception):
    """The header is cut off or says what no header says."""


class _Reader:
    """Reads a file and keeps to the budget."""

    def __init__(self, file: BinaryIO, limits: HeaderLimits) -> None:
        self._file, self._limits = file, limits
        self._bytes = self._parts = 0
        self._end = time.thread_time() + limits.seconds

    def read(self, size: int) -> bytes:
        self._bytes += size
        if self._bytes > self._limits.bytes:
            raise _Spent(f"more than {self._limits.bytes:,} bytes")
        data = self._file.read(size)
        if len(data) < size:
            raise _Broken
        return data

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.read(struct.calcsize(form)))

    def seek(self, offset: int) -> None:
        try:
            self._file.seek(offset)
        except (OverflowError, ValueError):
            raise _Broken from None

    def skip(self, size: int) -> None:
        if size < 0:
            raise _Broken
        self.seek(self._file.tell() + size)

    def part(self) -> None:
        """One more part is passed."""
        self._parts += 1
        if self._parts > self._limits.parts:
            raise _Spent(f"more than {self._limits.parts:,} parts")
        if time.thread_time() > self._end:
            raise _Spent(f"more than {self._limits.seconds:g} seconds of the processor")


Size = tuple[int, int]


def _png(file: _Reader) -> Size:
    file.skip(8)
    length, kind, width, height = struct.unpack(">I4sII", file.read(16))
    if length != 13 or kind != b"IHDR":
        raise _Broken
    return width, height


def _jpeg(file: _Reader) -> Size:
    file.skip(2)
    while True:
        # As libjpeg does: to the next FF; any number of FF; a code that is not 0.
        while file.read(1) != b"\xff":
            file.part()
        while (code := file.read(1)[0]) == 0xFF:
            file.part()
        file.part()
        if code in (0x00, 0x01) or 0xD0 <= code <= 0xD7:  # stuffing, and markers without a length
            continue
        if code in (0xD8, 0xD9, 0xDA):  # a second start, the end, or a scan before any frame
            raise _Broken
        (length,) = file.unpack(">H")
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            _, height, width = file.unpack(">BHH")
            return width, height
        file.skip(length - 2)


def _webp(file: _Reader) -> Size:
    data = file.read(30)
    if data[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(data[i : i + 3], "little") for i in (24, 27))
        return width, height
    if data[12:16] == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if data[12:16] == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise _Broken


def _bmp(file: _Reader) -> Size:
    file.skip(14)
    (header,) = file.unpack("<I")
    width, height = file.unpack("<HH" if header == 12 else "<ii")
    return width, abs(height)  # negative: rows from top to bottom


def _gif(file: _Reader) -> Size:
    file.skip(6)
    width, height = file.unpack("<HH")
    return width, height


def _tiff(file: _Reader) -> Size:
    """Of the first directory, which is the one that is decoded."""
    tags = next(_directories(file))
    return tags[256], tags[257]


def _directories(file: _Reader) -> Iterator[dict[int, int]]:
    """Width, height and kind (tags 256, 257 and, where it is there, 254) of each page of a TIFF."""
    head = file.read(8)
    order = "<" if head[:2] == b"II" else ">"
    big = 43 in (head[2], head[3])
    (offset,) = file.unpack(order + "Q") if big else struct.unpack(order + "I", head[4:])
    sizes = {1: "B", 3: "H", 4: "I", **({16: "Q"} if big else {})}
    while offset:
        file.seek(offset)
        (number,) = file.unpack(order + ("Q" if big else "H"))
        values: dict[int, int] = {}
        for _ in range(number):
            file.part()
            tag, kind = file.unpack(order + "HH")
            data = file.read(16 if big else 8)
            if tag not in (254, 256, 257):
                continue
            value = data[8:] if big else data[4:]
            if tag in values or kind not in sizes:  # readers differ in which of two they take
                if tag == 254:
                    continue
                raise _Broken
            values[tag] = struct.unpack_from(order + sizes[kind], value)[0]
        if not {256, 257} <= values.keys():
            raise _Broken
        yield values
        file.part()
        (offset,) = file.unpack(order + ("Q" if big else "I"))


def _netpbm(file: _Reader) -> Size:
    file.skip(2)
    numbers: list[int] = []
    word = b""
    while len(numbers) < 2:
        byte = file.read(1)
        while byte == b"#":  # a comment, to the end of the line
            while file.read(1) not in b"\r\n":
                file.part()
            byte = b" "
        if byte.isdigit() and len(word) < 10:
            word += byte
        elif byte.isspace():
            file.part()
            numbers += [int(word)] if word else []
            word = b""
        else:
            raise _Broken
    return numbers[0], numbers[1]


def _jpeg_2000(file: _Reader) -> Size:
    if file.read(4) != b"\xff\x4f\xff\x51":  # not a bare code stream: find it among the boxes
        file.seek(0)
        while True:
            file.part()
            length, kind = struct.unpack(">I4s", file.read(8))
            head = 8
            if length == 1:
                (length,) = file.unpack(">Q")
                head = 16
            if kind == b"jp2c":
                break
            file.skip(length - head)
        if file.read(4) != b"\xff\x4f\xff\x51":
            raise _Broken
    file.skip(4)
    right, bottom, left, top = file.unpack(">IIII")
    return right - left, bottom - top


def _numpy(file: _Reader) -> Size:
    """Of a .npy file (H, W), (H, W, C) or (C, H, W); channels are the shorter of two axes."""
    head = file.read(12)
    size = struct.unpack_from("<I" if head[6] > 1 else "<H", head, 8)[0]
    file.seek(12 if head[6] > 1 else 10)
    try:
        shape = ast.literal_eval(file.read(min(size, 4096)).decode("latin-1").strip())["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise _Broken from None
    whole = isinstance(shape, tuple) and all(type(n) is int and n > 0 for n in shape)
    if not whole or len(shape) not in (2, 3):
        raise _Broken
    height, width = shape[1:] if len(shape) == 3 and shape[0] < shape[2] else shape[:2]
    return width, height


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FORMATS: tuple[tuple[str, Callable[[bytes], bool], Callable[[_Reader], Size]], ...] = (
    ("PNG", lambda b: b.startswith(b"\x89PNG\r\n\x1a\n"), _png),
    ("JPEG", lambda b: b.startswith(b"\xff\xd8\xff"), _jpeg),
    ("WEBP", lambda b: b[:4] == b"RIFF" and b[8:12] == b"WEBP", _webp),
    ("BMP", lambda b: b.startswith(b"BM"), _bmp),
    ("GIF", lambda b: b[:6] in (b"GIF87a", b"GIF89a"), _gif),
    ("TIFF", lambda b: b[:4] in _TIFF, _tiff),
    ("NPY", lambda b: b.startswith(b"\x93NUMPY"), _numpy),
    ("PPM", lambda b: b[:1] == b"P" and b[1:2] in b"123456" and b[2:3].isspace(), _netpbm),
    (
        "JPEG2000",
        lambda b: b.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")),
        _jpeg_2000,
    ),
)


def read_header(
    source: str | os.PathLike[str] | BinaryIO | bytes,
    name: str,
    limits: HeaderLimits = _LIMITS,
) -> ImageHeader | None:
    """Read the format and size of a JPEG, PNG, WebP, TIFF, BMP, GIF, PNM, JPEG 2000 or .npy file.

    Nothing is decoded. Returns None if the file has another format or a broken header.

    Raises:
        UserError: The budget does not suffice: the header is made of very many parts.
        OSError: The file cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as opened:
            return read_header(opened, name, limits)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    file.seek(0)
    start = file.read(16)
    file.seek(0)
    for form, known, size in _FORMATS:
        if known(start):
            try:
                width, height = size(_Reader(file, limits))
            except _Broken:
                return None
            except _Spent as spent:
                message = f"the header of this {form} file has {spent} before the size; "
                message += "save the image again without its metadata"
                raise UserError("too-large", f"image {name}", message) from None
            return ImageHeader(form, width, height) if width > 0 and height > 0 else None
    return None


def count_pages(file: BinaryIO) -> int:
    """How many images a TIFF file holds that have the size of the first one; 1 for another file.

    Overviews and masks do not count. Of a broken file, or one of very many parts, pages count up
    to where it breaks.

    Raises:
        OSError: The file cannot be read.
    """
    if file.read(4) not in _TIFF:
        return 1
    file.seek(0)
    sizes: list[Size] = []
    with contextlib.suppress(_Broken, _Spent):
        for tags in _directories(_Reader(file, _LIMITS)):
            if not tags.get(254, 0) & 5:
                sizes.append((tags[256], tags[257]))
    return sizes.count(sizes[0]) if sizes else 1


def check_structure(data: bytes, header: ImageHeader, name: str) -> None:
    """Raises UserError for tiny chunks, packed texts or many scans, which keep a decoder busy."""
    if header.format == "PNG":
        _check_png(data, name)
    if header.format == "JPEG":
        # FF DA in pixel data is written as FF 00 DA: what is counted are scans, those of thumbnails
        # included.
        scans = data.count(b"\xff\xda")
        if scans > min(_MOST_SCANS, max(1, _MOST_SCANNED // (header.width * header.height))):
            message = f"this JPEG has {scans:,} scans, too many for its size; save it as baseline"
            raise UserError("too-large", f"image {name}", message)


def _is_packed(kind: bytes, data: bytes, start: int) -> bool:
    if kind != b"iTXt":
        return kind in (b"iCCP", b"zTXt")
    keyword = data.find(b"\0", start, start + 80)  # the flag stands behind it
    return keyword < 0 or data[keyword + 1 : keyword + 2] != b"\0"


def _check_png(data: bytes, name: str) -> None:
    most = _FREE_CHUNKS + len(data) // _BYTES_A_CHUNK
    place, chunks, packed = 8, 0, 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunks += 1
        packed += _is_packed(kind, data, place + 8)
        if chunks > most or packed > _MOST_PACKED:
            what = f"{packed:,} compressed texts" if packed > _MOST_PACKED else f"{most:,} chunks"
            message = (
                f"this PNG has {what} or more, too many for its size; save it again "
                "without its metadata"
            )
            raise UserError("too-large", f"image {name}", message)
        if kind == b"IEND":
            return
        place += 12 + length


def open_any_size(source: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    """Open an image with Pillow, however many pixels it has, to read what its header says.

    ``Image.open`` refuses files of many pixels by a limit that is one for the whole process; for
    the formats of :func:`read_header` the format's own class is called in its place.

    The image is not decoded, and closes the file that was opened for a path.

    Raises:
        OSError, SyntaxError, ValueError: As ``Image.open`` does.
        PIL.Image.DecompressionBombError: It has very many pixels, in another format.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "in memory"
    try:
        header = read_header(source, name)
    except UserError as error:
        raise ValueError(error.text) from error
    if header is None or header.format == "NPY":
        return Image.open(source)
    Image.preinit()  # registers the usual formats; does nothing the second time
    if header.format not in Image.OPEN:
        Image.init()  # registers all formats: forty modules
    factory = Image.OPEN[header.format][0]
    if not isinstance(source, str | os.PathLike):
        source.seek(0)
        return factory(source, "")
    return factory(cast(Any, name), name)  # closes the file that it opens
