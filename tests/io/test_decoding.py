# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Decoding in processes gives what decoding here gives, and ends when it takes too long."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hostile_images import HEIGHT, WIDTH, packed_texts, png, saved
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.io import decoding
from mmseg_resnest.io.decoding import DecodePool, ImageTooLarge
from mmseg_resnest.io.image_files import Decoding
from mmseg_resnest.io.image_header import ImageHeader

SLOW = ImageHeader("PNG", WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    made = DecodePool(3_000_000)
    made.start()
    yield made
    made.close()


def decode(pool: DecodePool, data: bytes, how: Decoding = Decoding()) -> np.ndarray:  # noqa: B008
    return pool.submit(data, pool.check(data, "x", how), "x", how).result(60)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
def test_pixels_are_those_of_decoding_here(pool: DecodePool, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    options = {"exif": turned} if kind in ("PNG", "JPEG", "WEBP") else {}
    data = encoded(Image.fromarray(pixels), kind, **options)
    for flag in ("color", "grayscale", "unchanged"):
        here = Decoding(flag)(data)
        np.testing.assert_array_equal(decode(pool, data, Decoding(flag)), here)


def test_grey_alpha_and_16_bits(pool: DecodePool) -> None:
    for image in (
        Image.new("L", (9, 7), 3),
        Image.new("RGBA", (9, 7), (1, 2, 3, 4)),
        Image.fromarray(np.full((7, 9), 40000, np.uint16)),
    ):
        data = encoded(image, "PNG")
        for how in (Decoding(), Decoding("unchanged"), Decoding("grayscale", "pillow")):
            found, here = decode(pool, data, how), how(data)
            assert (found.dtype, found.shape) == (here.dtype, here.shape)
            np.testing.assert_array_equal(found, here)


def test_imports_are_not_within_the_limit_of_the_image_before() -> None:
    pool = DecodePool(3_000_000, processes=1)
    how = Decoding("grayscale", "pillow")  # imports MMCV: seconds of processor time
    try:
        for data in (png(), saved("JPEG")):  # the first sets a limit of a second
            np.testing.assert_array_equal(decode(pool, data, Decoding()), Decoding()(data))
        np.testing.assert_array_equal(decode(pool, png(), how), how(png()))
    finally:
        pool.close()


def test_bands(pool: DecodePool) -> None:
    pixels = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 5)).astype(np.float32)
    data = io.BytesIO()
    tifffile.imwrite(data, pixels, photometric="minisblack")
    how = Decoding("unchanged", "tifffile")
    np.testing.assert_array_equal(decode(pool, data.getvalue(), how), pixels)
    with raises_user_error("image", "image x"):
        decode(pool, saved("JPEG"), how)


def test_large_images(pool: DecodePool) -> None:
    data = encoded(Image.new("RGB", (2000, 1400), (1, 2, 3)), "PNG")
    assert decode(pool, data).shape == (1400, 2000, 3)
    with pytest.raises(ImageTooLarge):
        decode(pool, encoded(Image.new("L", (2000, 1600)), "PNG"))


def test_the_decoder_has_the_limit_as_well(pool: DecodePool) -> None:
    data = encoded(Image.new("L", (2000, 1600)), "PNG")
    with raises_user_error("image", "image x"):
        pool.submit(data, SLOW, "x").result(60)


def test_pages_are_refused_where_only_the_first_would_be_read(pool: DecodePool) -> None:
    page = Image.new("RGB", (WIDTH, HEIGHT))
    data = encoded(page, "TIFF", save_all=True, append_images=[page, page])
    with raises_user_error("image", "image x"):
        decode(pool, data)
    assert pool.check(data, "x", Decoding("unchanged", "tifffile")).format == "TIFF"


def test_what_is_no_image(pool: DecodePool) -> None:
    for data in (b"", b"no image", png()[:60], saved("JPEG")[:200]):
        with raises_user_error("image", "image x"):
            decode(pool, data)
    assert decode(pool, png()).shape == (HEIGHT, WIDTH, 3)


def test_decoding_that_takes_too_long_is_ended(
    pool: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("resource", reason="Linux and macOS only")
    # 2,000 texts take libpng many seconds of processor time; the header's check would refuse them.
    with raises_user_error("too-large", "image x"):
        pool.submit(packed_texts(1000), SLOW, "x").result(60)
    # On the clock, where the system has no limit on processor time.
    monkeypatch.setattr(decoding, "_WAIT", 0.2)
    monkeypatch.setattr(decoding, "_SECONDS", 0.1)
    with raises_user_error("too-large", "image x"):
        pool.submit(packed_texts(1000), SLOW, "x").result(60)
    monkeypatch.undo()
    assert decode(pool, png()).shape == (HEIGHT, WIDTH, 3)


def test_a_process_that_answers_no_more_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = tmp_path / "ending.py"  # its output is closed, and it has not ended yet
    ending.write_text("import os, time\nos.close(1)\ntime.sleep(600)\n")
    monkeypatch.setattr(decoding, "_WORKER", ending)
    pool = DecodePool(3_000_000, processes=1)
    try:
        with raises_user_error("too-large", "image x"):
            decode(pool, png())
        monkeypatch.undo()
        assert decode(pool, png()).shape == (HEIGHT, WIDTH, 3)
    finally:
        pool.close()


def test_who_gives_up_ends_it(pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_SECONDS", 1000.0)
    started = [pool.submit(packed_texts(1000), SLOW, "x") for _ in range(6)]
    end = time.monotonic() + 60
    while sum(f.running() for f in started) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    for future in started:
        pool.give_up(future)
    for future in started:
        if not future.cancelled():
            with raises_user_error("too-large", "image x"):
                future.result(60)
    assert sum(f.cancelled() for f in started) == 4
    monkeypatch.undo()
    assert decode(pool, png()).shape == (HEIGHT, WIDTH, 3)


def test_giving_up_at_any_moment_harms_nobody_else(pool: DecodePool) -> None:
    data = encoded(Image.new("RGB", (600, 400)), "PNG")
    header = pool.check(data, "x")
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = pool.submit(data, header, "x"), pool.submit(data, header, "x")
        timer = threading.Timer(rng.uniform(0, 0.02), pool.give_up, (first,))
        timer.start()
        assert second.result(60).shape == (400, 600, 3)
        timer.join()
    assert decode(pool, png()).shape == (HEIGHT, WIDTH, 3)


def test_a_closed_pool_leaves_no_process() -> None:
    pool = DecodePool(1000_000, processes=1)
    decode(pool, png())
    process = pool._lanes[0].decoders[0]._process
    assert process is not None
    pool.close()
    assert process.returncode is not None
