# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""PNG files read by compiled loops, beside OpenCV and Pillow."""

import io
import os
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile as PlainImage
from PIL import Image, PngImagePlugin

from mmseg_resnest.datasets import LoadAnnotations, LoadImageFromFile, decode
from mmseg_resnest.datasets.decode import decode_image, decode_label, decode_png
from mmseg_resnest.errors import UserError
from mmseg_resnest.kernels import compiled


@pytest.fixture(params=["loops", "no loops", "no ISA-L"])
def way(request, monkeypatch):
    """With everything, without Numba's loops, with them and the standard library's inflate."""
    if request.param == "no loops":
        monkeypatch.setattr(compiled, "_loops", None)
    elif compiled.load_loops() is None:
        pytest.skip("Numba is not installed")
    if request.param == "no ISA-L":
        monkeypatch.setattr(decode, "inflate", zlib)
    return request.param


@pytest.mark.parametrize("kind", [Path, str])
def test_paths_of_both_kinds_are_read(way, kind, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels[..., ::-1]).save(tmp_path / "image.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "label.png")
    image = LoadImageFromFile()(dict(img_path=kind(tmp_path / "image.png")))["img"]
    assert np.array_equal(image, pixels)
    sample = dict(seg_map_path=kind(tmp_path / "label.png"), reduce_zero_label=False, seg_fields=[])
    assert np.array_equal(LoadAnnotations()(sample)["gt_seg_map"], pixels[..., 0])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: memoryview(bytearray(b))])
def test_what_a_storage_backend_may_give_is_read(way, kind, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "label.png")
    data = kind((tmp_path / "label.png").read_bytes())
    assert np.array_equal(decode_label(data), pixels)
    assert decode_image(data).shape == (9, 11, 3)


def test_the_way_without_isal_is_said(monkeypatch):
    said = []
    monkeypatch.setattr(decode, "print_log", lambda text, **_: said.append(text))
    monkeypatch.setattr(decode, "inflate", SimpleNamespace())  # another than the standard library's
    decode.tell_what_unpacks()
    monkeypatch.setattr(decode, "inflate", zlib)
    decode.tell_what_unpacks()
    assert len(said) == 1 and "isal is not installed (pip install" in said[0]


@pytest.fixture
def loops():
    if compiled.load_loops() is None:
        pytest.skip("Numba is not installed")


def part(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


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
    pixels: np.ndarray, kinds: list[int], parts: int = 1, extra: bytes = b"", bits: int = 8
) -> bytes:
    """A PNG file of pixels (H, W) or (H, W, 3) RGB whose rows have these filters."""
    height, width = pixels.shape[:2]
    step = 1 if pixels.ndim == 2 else 3
    rows = pixels.reshape(height, -1)
    above, body = bytes(rows.shape[1]), b""
    for y, row in enumerate(rows):
        body += filtered_row(kinds[y % len(kinds)], row.tobytes(), above, step)
        above = row.tobytes()
    packed = zlib.compress(body)
    size = -(-len(packed) // parts)
    header = struct.pack(">IIBBBBB", width, height, bits, 0 if step == 1 else 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", header)
        + extra
        + b"".join(part(b"IDAT", packed[i : i + size]) for i in range(0, len(packed), size))
        + part(b"IEND", b"")
    )


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 20),
    colours=st.booleans(),
    regions=st.booleans(),
    kinds=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    parts=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_every_filter_is_taken_back(height, width, colours, regions, kinds, parts, seed):
    if compiled.load_loops() is None:
        pytest.skip("Numba is not installed")
    rng = np.random.default_rng(seed)
    shape = (height, width, 3) if colours else (height, width)
    pixels = rng.integers(0, 3 if regions else 256, shape, dtype=np.uint8)
    if regions:
        pixels = pixels[:: max(1, height // 3)].repeat(max(1, height // 3), 0)[:height]
        pixels = pixels.reshape(-1, *shape[1:])
    data = png(pixels, kinds, parts)
    if colours:
        made = decode_png(data, (2,))
        assert np.array_equal(made, pixels[:, :, ::-1])
        assert np.array_equal(made, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
        assert decode_png(data, (0, 3)) is None
    else:
        made = decode_png(data, (0, 3))
        assert np.array_equal(made, pixels)
        assert np.array_equal(made, np.array(Image.open(io.BytesIO(data))))
        assert decode_png(data, (2,)) is None
    assert made.flags.writeable and made.flags.c_contiguous


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_label_files_are_read_as_pillow_reads_them(mode, way):
    """Grey PNGs by another library; palette numbers and bits stay numbers, damage is no secret."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2 if mode == "1" else 151, (37, 53), dtype=np.uint8)
    picture = Image.fromarray(numbers * 255 if mode == "1" else numbers).convert(
        "1" if mode == "1" else "L"
    )
    if mode == "P":
        picture = Image.fromarray(numbers)
        picture.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    data = stream.getvalue()
    assert np.array_equal(decode_label(data), numbers)
    assert np.array_equal(decode_label(data), np.array(Image.open(io.BytesIO(data))))
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


@pytest.mark.skipif("MMSEG_RESNEST_DATA" not in os.environ, reason="no real images")
def test_real_files_are_read_as_opencv_and_pillow_read_them(loops):
    root = Path(os.environ["MMSEG_RESNEST_DATA"])
    seen = {"image": 0, "label": 0}
    for path in sorted(root.rglob("*.png")):
        data = path.read_bytes()
        for name, quick in (("image", decode_png(data, (2,))), ("label", decode_png(data, (0, 3)))):
            if quick is None or seen[name] == 5:
                continue
            seen[name] += 1
            if name == "image":
                expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            else:
                expected = np.array(Image.open(io.BytesIO(data)))
            assert np.array_equal(quick, expected), path
    assert seen == {"image": 5, "label": 5}


def test_an_image_file_is_read_as_before(way, tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (11, 13, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "harmless")
    wide = Image.fromarray(rng.integers(0, 2**16, (11, 13), dtype=np.uint16))
    clear = Image.fromarray(rng.integers(0, 256, (11, 13, 4), dtype=np.uint8), "RGBA")
    pictures = {
        "plain": (Image.fromarray(colours), dict(pnginfo=text)),
        "turned": (Image.fromarray(colours), dict(exif=turned)),
        "see-through": (Image.fromarray(colours), dict(transparency=(1, 2, 3))),
        "grey": (Image.fromarray(colours[:, :, 0]), {}),
        "palette": (Image.fromarray(colours).quantize(16), {}),
        "alpha": (clear, {}),
        "16 bits": (wide, {}),
        "jpeg": (Image.fromarray(colours), dict(format="JPEG")),
    }
    for name, (picture, options) in pictures.items():
        stream = io.BytesIO()
        picture.save(stream, **{"format": "PNG", **options})
        data = stream.getvalue()
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(decode_image(data), expected), name
        assert (decode_png(data, (2,)) is not None) == (name == "plain" and way != "no loops")
        path = tmp_path / f"{name}.bin"
        path.write_bytes(data)
        assert np.array_equal(LoadImageFromFile()({"img_path": str(path)})["img"], expected), name


@pytest.mark.parametrize("colours", [False, True])
def test_what_a_file_says_of_its_colours_changes_no_pixel(colours, loops):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 70, 3) if colours else (12, 70), dtype=np.uint8)
    extra = part(b"gAMA", struct.pack(">I", 20_000)) + part(b"cHRM", struct.pack(">8I", *[9] * 8))
    extra += part(b"bKGD", b"\0\5" * (3 if colours else 1))
    data = png(pixels, [1], extra=extra)
    made = decode_png(data, (0, 2))
    flag = cv2.IMREAD_COLOR if colours else cv2.IMREAD_UNCHANGED
    assert np.array_equal(made, cv2.imdecode(np.frombuffer(data, np.uint8), flag))
    assert np.array_equal(made[..., ::-1] if colours else made, Image.open(io.BytesIO(data)))


def ending(load, path: str):
    """What comes of an image: None, or the error's words."""
    try:
        return load({"img_path": path})
    except AssertionError as error:
        return str(error)


def test_a_broken_image_ends_as_before(way, tmp_path):
    path = tmp_path / "a.png"
    for data in (b"", b"no image", png(np.zeros((4, 5, 3), np.uint8), [0])[:40]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.png"):
            LoadImageFromFile()({"img_path": str(path)})
        lenient = LoadImageFromFile(ignore_empty=True)
        lenient.explains = False
        stock = PlainImage(ignore_empty=True)
        assert ending(lenient, str(path)) == ending(stock, str(path))
    missing = {"img_path": str(tmp_path / "b.png")}
    assert LoadImageFromFile(ignore_empty=True)(missing) is None


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_damaged_is_never_read(data):
    """A file that was cut off, or of which a byte is another."""
    if compiled.load_loops() is None:
        pytest.skip("Numba is not installed")
    pixels = np.random.default_rng(1).integers(0, 4, (7, 9, 3), dtype=np.uint8)
    whole = png(pixels, [4, 2, 1, 3, 0], parts=2)
    assert np.array_equal(decode_png(whole, (2,)), pixels[:, :, ::-1])
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        assert decode_png(whole[:place], (2,)) is None
    else:
        broken = bytearray(whole)
        broken[place] ^= data.draw(st.integers(1, 255))
        assert decode_png(bytes(broken), (2,)) is None


def test_files_that_say_wrong_things_of_themselves_are_left_alone(loops):
    pixels = np.random.default_rng(1).integers(0, 4, (7, 9), dtype=np.uint8)
    assert np.array_equal(decode_png(png(pixels, [0]), (0,)), pixels)

    def changed(old: bytes, new: bytes) -> bytes:
        """Another part in place of one, with the right check sum."""
        return png(pixels, [0]).replace(part(b"IHDR", old), part(b"IHDR", new))

    header = struct.pack(">IIBBBBB", 9, 7, 8, 0, 0, 0, 0)
    for size in ((9, 6), (9, 8), (8, 7), (0, 7), (9, 0), (2**31 - 1, 2**31 - 1)):
        other = struct.pack(">II", *size) + header[8:]
        assert decode_png(changed(header, other), (0,)) is None, size
    interlaced = header[:-1] + b"\1"
    assert decode_png(changed(header, interlaced), (0,)) is None
    assert decode_png(png(pixels, [0], bits=4), (0,)) is None
    assert decode_png(png(pixels, [0], extra=part(b"tRNS", b"\0\1")), (0,)) is None
    assert decode_png(png(pixels, [0], extra=part(b"new1", b"x")), (0,)) is None
    body = bytes([5]) + bytes(9)  # a filter that there is not
    start = png(pixels, [0]).index(b"IDAT") - 4
    assert decode_png(png(pixels, [0])[:start] + part(b"IDAT", zlib.compress(body * 7))
                      + part(b"IEND", b""), (0,)) is None  # fmt: skip
