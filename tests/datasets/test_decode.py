# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""PNG files with and without kornia-rs: the pixels of OpenCV and Pillow, damage included."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from png_files import chunk, png_file
from real_data import DATA, needs
from user_errors import raises_user_error

from mmseg_resnest.datasets import LoadAnnotations, LoadImageFromFile, decode
from mmseg_resnest.datasets.decode import decode_image, decode_label, decode_png

GREY, RGB, PALETTE = 0, 2, 3
PIXELS = np.zeros((4, 5, 3), np.uint8)


@pytest.fixture(params=["kornia-rs", "OpenCV alone"])
def library(request, monkeypatch):
    if request.param == "OpenCV alone":
        monkeypatch.setattr(decode, "decode_rust", None)
    elif decode.decode_rust is None:
        pytest.skip("kornia-rs is not installed")
    return request.param


def paeth(left: int, up: int, corner: int) -> int:
    estimate = left + up - corner
    return min((left, up, corner), key=lambda value: abs(estimate - value))


def filtered_row(kind: int, row: bytes, above: bytes, step: int) -> bytes:
    """A row as PNG's filters write it, byte by byte as the specification says."""
    made = bytearray([kind])
    for i, value in enumerate(row):
        left, corner = (row[i - step], above[i - step]) if i >= step else (0, 0)
        up = above[i]
        guess = [0, left, up, (left + up) // 2, paeth(left, up, corner)][kind]
        made.append((value - guess) % 256)
    return bytes(made)


def png(
    pixels: np.ndarray, filters: list[int], parts: int = 1, extra: bytes = b"", bits: int = 8
) -> bytes:
    """A PNG file of pixels (H, W) or (H, W, 3) RGB whose rows have these filters."""
    height, width = pixels.shape[:2]
    step = 1 if pixels.ndim == 2 else 3
    above, body = bytes(width * step), b""
    for y, row in enumerate(pixels.reshape(height, -1)):
        body += filtered_row(filters[y % len(filters)], row.tobytes(), above, step)
        above = row.tobytes()
    colour = GREY if step == 1 else RGB
    return png_file(width, height, body, bits, colour, extra, parts)


def opencv(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.parametrize("path_type", [Path, str])
def test_files_are_loaded(library, path_type, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels[..., ::-1]).save(tmp_path / "image.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "label.png")
    image = LoadImageFromFile()(dict(img_path=path_type(tmp_path / "image.png")))["img"]
    assert np.array_equal(image, pixels)
    label = path_type(tmp_path / "label.png")
    sample = dict(seg_map_path=label, reduce_zero_label=False, seg_fields=[])
    assert np.array_equal(LoadAnnotations()(sample)["gt_seg_map"], pixels[..., 0])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_any_type_are_decoded(library, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11), dtype=np.uint8)
    data = kind(png(pixels, [0]))
    assert np.array_equal(decode_label(data), pixels)
    assert decode_image(data).shape == (9, 11, 3)


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 20),
    colours=st.booleans(),
    regions=st.booleans(),
    filters=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    parts=st.integers(1, 3),
    rust=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_filter_is_decoded(height, width, colours, regions, filters, parts, rust, seed):
    rng = np.random.default_rng(seed)
    shape = (height, width, 3) if colours else (height, width)
    pixels = rng.integers(0, 3 if regions else 256, shape, dtype=np.uint8)
    if regions:
        pixels = pixels[:: max(1, height // 3)].repeat(max(1, height // 3), 0)[:height]
        pixels = pixels.reshape(-1, *shape[1:])
    data = png(pixels, filters, parts)
    with pytest.MonkeyPatch.context() as patch:
        if not rust:
            patch.setattr(decode, "decode_rust", None)
        if colours:
            made = decode_png(data, RGB)
            assert np.array_equal(made, pixels[:, :, ::-1])
            assert np.array_equal(made, opencv(data))
            assert decode_png(data, GREY, PALETTE) is None
        else:
            made = decode_png(data, GREY)
            assert np.array_equal(made, pixels)
            assert np.array_equal(made, np.array(Image.open(io.BytesIO(data))))
            assert decode_png(data, RGB) is None
    assert made.flags.writeable and made.flags.c_contiguous


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_label_files_have_pillows_values(mode, library):
    """Palette indices and bits stay numbers; a damaged file raises what Pillow raises."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2 if mode == "1" else 151, (37, 53), dtype=np.uint8)
    picture = Image.fromarray(values * 255).convert("1") if mode == "1" else Image.fromarray(values)
    if mode == "P":
        picture.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    data = stream.getvalue()
    assert np.array_equal(decode_label(data), values)
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 16
    for broken in (data[: len(data) // 2], data[:-14], bytes(damaged)):
        try:
            expected = np.array(Image.open(io.BytesIO(broken)))
        except (OSError, SyntaxError) as error:
            with pytest.raises(type(error)):
                decode_label(broken)
        else:
            assert np.array_equal(decode_label(broken), expected)


@needs(".")
def test_real_files_have_the_pixels_of_opencv_and_pillow(library):
    seen = {"image": 0, "label": 0}
    for path in sorted(DATA.rglob("*.png")):
        data = path.read_bytes()
        image, label = decode_png(data, RGB), decode_png(data, GREY, PALETTE)
        if image is not None and seen["image"] < 5:
            seen["image"] += 1
            assert np.array_equal(image, opencv(data)), path
        if label is not None and seen["label"] < 5:
            seen["label"] += 1
            assert np.array_equal(label, np.array(Image.open(io.BytesIO(data)))), path
    assert seen == {"image": 5, "label": 5}


def test_images_of_every_kind_have_opencvs_pixels(library, tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (11, 13, 3), dtype=np.uint8)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "harmless")
    plain = Image.fromarray(colours)
    pictures = {
        "plain": (plain, dict(pnginfo=text)),
        "rotated": (plain, dict(exif=rotated)),
        "transparent": (plain, dict(transparency=(1, 2, 3))),
        "grey": (plain.convert("L"), {}),
        "palette": (plain.quantize(16), {}),
        "alpha": (plain.convert("RGBA"), {}),
        "16 bits": (Image.fromarray(rng.integers(0, 2**16, (11, 13), dtype=np.uint16)), {}),
        "jpeg": (plain, dict(format="JPEG")),
    }
    for name, (picture, options) in pictures.items():
        stream = io.BytesIO()
        picture.save(stream, **{"format": "PNG", **options})
        data = stream.getvalue()
        assert (decode_png(data, RGB) is not None) == (name == "plain")
        path = tmp_path / f"{name}.bin"
        path.write_bytes(data)
        loaded = LoadImageFromFile()({"img_path": str(path)})["img"]
        assert np.array_equal(loaded, opencv(data)), name


@pytest.mark.parametrize("colours", [False, True])
def test_colour_management_changes_no_pixel(colours, library):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 70, 3) if colours else (12, 70), dtype=np.uint8)
    extra = chunk(b"gAMA", struct.pack(">I", 20_000)) + chunk(b"cHRM", struct.pack(">8I", *[9] * 8))
    extra += chunk(b"bKGD", b"\0\5" * (3 if colours else 1))
    made = decode_png(png(pixels, [1], extra=extra), GREY, RGB)
    assert np.array_equal(made[..., ::-1] if colours else made, pixels)


def test_a_broken_image_is_an_error_or_ignored(library, tmp_path):
    path = tmp_path / "a.png"
    for data, code in ((b"", "empty"), (b"no image", "image"), (png(PIXELS, [0])[:40], "image")):
        path.write_bytes(data)
        with raises_user_error(code, path):
            LoadImageFromFile()({"img_path": str(path)})
    missing = {"img_path": str(tmp_path / "b.png")}
    assert LoadImageFromFile(ignore_empty=True)(missing) is None
    with raises_user_error("not-found", tmp_path / "b.png"):
        LoadImageFromFile()(missing)


@given(st.data())
def test_a_damaged_file_is_not_decoded(data):
    """A file that was cut off, or has one other byte."""
    pixels = np.random.default_rng(1).integers(0, 4, (7, 9, 3), dtype=np.uint8)
    intact = png(pixels, [4, 2, 1, 3, 0], parts=2)
    place = data.draw(st.integers(0, len(intact) - 1))
    if data.draw(st.booleans()):
        assert decode_png(intact[:place], RGB) is None
    else:
        broken = bytearray(intact)
        broken[place] ^= data.draw(st.integers(1, 255))
        assert decode_png(bytes(broken), RGB) is None


def test_unusual_files_and_false_headers_are_left_to_other_libraries():
    pixels = np.random.default_rng(1).integers(0, 4, (7, 9), dtype=np.uint8)
    intact = png(pixels, [0])
    header = struct.pack(">IIBBBBB", 9, 7, 8, 0, 0, 0, 0)

    def with_header(new: bytes) -> bytes:
        return intact.replace(chunk(b"IHDR", header), chunk(b"IHDR", new))

    for size in ((0, 7), (9, 0), (2**31 - 1, 2**31 - 1)):
        assert decode_png(with_header(struct.pack(">II", *size) + header[8:]), GREY) is None, size
    assert decode_png(with_header(header[:-1] + b"\1"), GREY) is None  # interlaced
    assert decode_png(png(pixels, [0], bits=4), GREY) is None
    assert decode_png(png(pixels, [0], extra=chunk(b"tRNS", b"\0\1")), GREY) is None
    assert decode_png(png(pixels, [0], extra=chunk(b"new1", b"x")), GREY) is None
    if decode.decode_rust:
        for size in ((9, 8), (10, 7)):  # too few bytes
            assert decode_png(with_header(struct.pack(">II", *size) + header[8:]), GREY) is None
        start = intact.index(b"IDAT") - 4
        rows = zlib.compress((bytes([5]) + bytes(9)) * 7)  # a filter that does not exist
        bad_filter = intact[:start] + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        assert decode_png(bad_filter, GREY) is None
