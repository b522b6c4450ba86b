# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Headers are read as Pillow and OpenCV read them, within a budget."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hostile_images import HEIGHT, WIDTH, chunk, hostile, png, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest import UserError
from mmseg_resnest.io.image_header import (
    HeaderLimits,
    ImageHeader,
    check_structure,
    count_pages,
    open_any_size,
    read_header,
)

FORMATS = {
    "PNG": [{}],
    "JPEG": [{}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(60000), "comment": b"x"}],
    "WEBP": [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0", "quality": 80}],
    "BMP": [{}],
    "GIF": [{}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}],
    "PPM": [{}],
    "JPEG2000": [{}, {"no_jp2": True}],
}


@pytest.mark.parametrize(
    ("kind", "options"), [(kind, options) for kind, all_ in FORMATS.items() for options in all_]
)
def test_size_and_format(kind: str, options: dict[str, object], tmp_path: Path) -> None:
    data = saved(kind, **options)
    want = ImageHeader(kind, WIDTH, HEIGHT)
    assert read_header(data, "x") == want
    (tmp_path / "x").write_bytes(data)
    assert read_header(tmp_path / "x", "x") == want
    check_structure(data, want, "x")
    with open_any_size(io.BytesIO(data)) as image:
        assert (image.format, image.size) == (kind, (WIDTH, HEIGHT))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_usual_format_imports_no_others(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has forty."""
    monkeypatch.setattr(Image, "init", lambda: pytest.fail("imports all formats"))
    with open_any_size(io.BytesIO(saved(kind))) as image:
        assert image.format == kind


def test_netpbm_with_comments() -> None:
    text = f"P6\n# a comment\n{WIDTH}#another\n {HEIGHT}\n255\n".encode()
    assert read_header(text, "x") == ImageHeader("PPM", WIDTH, HEIGHT)


def test_files_of_many_chunks_and_scans_are_read() -> None:
    jpeg = saved("JPEG")
    profile = b"\xff\xe2" + struct.pack(">H", 65535) + bytes(65533)
    assert read_header(jpeg[:2] + profile * 255 + b"\xff\xff" + jpeg[2:], "x")
    data = png(
        chunk(b"tEXt", b"Comment\0x") * 50 + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0x") * 50
    )
    check_structure(data, ImageHeader("PNG", WIDTH, HEIGHT), "x")


@pytest.mark.parametrize("name", hostile())
def test_hostile_files_are_refused(name: str) -> None:
    data = hostile()[name]
    with contextlib.suppress(UserError):
        header = read_header(data, "photo")
        if header is not None:
            check_structure(data, header, "photo")
            pytest.fail("would be decoded")


def test_the_budget_is_kept(tmp_path: Path) -> None:
    jpeg = saved("JPEG")
    data = jpeg[:2] + b"\xff\xe5\0\x0412" * 100 + jpeg[2:]
    assert read_header(data, "x", HeaderLimits(parts=200))
    for limits in (HeaderLimits(parts=50), HeaderLimits(bytes=100), HeaderLimits(seconds=0)):
        with raises_user_error("too-large", "image x"):
            read_header(data, "x", limits)


def test_a_tiff_with_two_sizes_is_refused() -> None:
    def tag(number: int, value: int) -> bytes:
        return struct.pack("<HHII", number, 4, 1, value)

    tags = [tag(256, 10), tag(257, 10)]
    head = b"II*\0\x08\0\0\0"
    assert read_header(head + struct.pack("<H", 2) + b"".join(tags) + bytes(16), "x")
    tags.append(tag(256, 60000))
    assert read_header(head + struct.pack("<H", 3) + b"".join(tags) + bytes(16), "x") is None


@given(
    kind=st.sampled_from([*FORMATS]),
    places=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=8),
    length=st.integers(0, 400),
)
@settings(deadline=None, database=None)
def test_damaged_headers(kind: str, places: list[tuple[int, int]], length: int) -> None:
    data = bytearray(saved(kind))
    for place, value in places:
        data[place % len(data)] = value
    with contextlib.suppress(UserError):
        header = read_header(bytes(data[:length]), "x")
        assert header is None or min(header.width, header.height) > 0


def test_pillow_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")
    with open_any_size(tmp_path / "a.png") as image:
        assert image.size == (100, 100)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("big", [False, True])
def test_pages_are_images_of_their_own(big: bool, tmp_path: Path) -> None:
    """Not overviews and masks."""
    pixels, file = np.zeros((8, 6, 3), np.uint8), tmp_path / "pages.tif"
    for number in (1, 3):
        with tifffile.TiffWriter(file, bigtiff=big) as tiff:
            for _ in range(number):
                tiff.write(pixels, photometric="rgb")
            tiff.write(pixels[::2, ::2], photometric="rgb", subfiletype=1)
            tiff.write(pixels[:, :, 0] > 0, photometric="mask", subfiletype=4)
        assert count_pages(io.BytesIO(file.read_bytes())) == number
        cut = file.read_bytes()[:-20]
        assert 1 <= count_pages(io.BytesIO(cut)) <= number
    assert count_pages(io.BytesIO(b"text")) == 1
