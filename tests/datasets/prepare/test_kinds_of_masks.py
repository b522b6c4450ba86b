# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""One label map in all kinds of files that tools write: read back as it was, or refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from advice import advises
from custom_sets import label_map, recognised, told
from PIL import Image
from tiny_archives import jpeg, tiff, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare.labels import indices

RANDOM = np.random.default_rng(0)
MAPS = {f"photo{name}": RANDOM.integers(0, 3, (6, 8), np.uint8) for name in "abcd"}
PALETTE = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)


def saved(pixels: np.ndarray, form: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, form, **options)
    return stream.getvalue()


def with_alpha(pixels: np.ndarray, alpha: int = 255) -> np.ndarray:
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return np.concatenate([pixels, np.full_like(pixels[..., :1], alpha)], axis=-1)


def grey(labels: np.ndarray) -> np.ndarray:
    return np.repeat(labels[..., None], 3, axis=-1)


def palette(labels: np.ndarray, **options: Any) -> bytes:
    image = Image.fromarray(labels, "P")
    image.putpalette([9, 9, 9, 9, 9, 9, 7, 8, 9])
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


NUMBERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "grey.png": saved,
    "grey.bmp": lambda labels: saved(labels, "BMP"),
    "grey.tif": lambda labels: saved(labels, "TIFF", compression="tiff_lzw"),
    "16.png": lambda labels: saved(labels.astype(np.uint16)),
    "32.tif": lambda labels: saved(labels.astype(np.int32), "TIFF"),
    "float.tif": lambda labels: saved(labels.astype(np.float32), "TIFF"),
    "rgb.png": lambda labels: saved(grey(labels)),
    "rgb.webp": lambda labels: saved(grey(labels), "WEBP", lossless=True),
    "rgba.png": lambda labels: saved(with_alpha(grey(labels))),
    "la.png": lambda labels: saved(with_alpha(labels), mode="LA"),
    "same_colours.png": palette,
    "transparent_zero.png": lambda labels: palette(labels, transparency=0),
}


def prepared(folder: Path, write: Callable[[np.ndarray], bytes], end: str, classes: str) -> None:
    write_folder(folder / "in/images", {f"{name}.jpg": jpeg(n) for n, name in enumerate(MAPS)})
    write_folder(folder / "in/masks", {f"{n}{end}": write(labels) for n, labels in MAPS.items()})
    if classes:
        (folder / "in/classes.txt").write_text(classes)
    told(folder / "in")


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("classes", ["", "sky\nroad\ncar\n"])
def test_label_numbers(tmp_path: Path, kind: str, classes: str) -> None:
    prepared(tmp_path, NUMBERS[kind], Path(kind).suffix, classes)
    for name, labels in MAPS.items():
        assert np.array_equal(label_map(tmp_path, name), labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits(bits: int) -> None:
    labels = MAPS["photoa"] % 2**bits
    few = saved(labels == 1) if bits == 1 else palette(labels, bits=bits)
    assert np.array_equal(indices(few, "few"), labels == 1 if bits == 1 else labels)


MORE = [Image.new("RGB", (8, 6))]
LOSSY: dict[str, Callable[[np.ndarray], bytes]] = {
    "grey.jpg": lambda labels: saved(labels, "JPEG"),
    "two.jpg": lambda labels: saved(np.where(labels == 1, 255, 0).astype(np.uint8), "JPEG"),
    "one_colour.jpg": lambda labels: saved(0 * labels, "JPEG"),
    "colours.jpg": lambda labels: saved(PALETTE[labels], "JPEG"),
    "several.jpg": lambda labels: saved(grey(labels), "MPO", save_all=True, append_images=MORE),
    "grey.webp": lambda labels: saved(grey(labels), "WEBP"),
    "exif.webp": lambda labels: saved(PALETTE[labels], "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "grey.tif": lambda labels: saved(labels, "TIFF", compression="jpeg"),
}
TABLE = "".join(f"{n} {r} {g} {b}\n" for n, (r, g, b) in zip("abc", PALETTE.tolist(), strict=True))


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("classes", ["", "sky\nroad\n", TABLE])
def test_lossy_files_are_refused(tmp_path: Path, kind: str, classes: str) -> None:
    """But for those in which no colour was changed."""
    end = Path(kind).suffix
    if classes == TABLE and kind == "one_colour.jpg":
        prepared(tmp_path, LOSSY[kind], end, classes)
        assert not label_map(tmp_path, "photoa").any()
        return
    with raises_user_error("label", f"photoa{end}"):
        prepared(tmp_path, LOSSY[kind], end, classes)


@pytest.mark.parametrize(
    "pixels",
    [
        np.float32([[0, 1.5]]),
        np.float32([[0, np.nan]]),
        np.int32([[0, -2]]),
        np.float32([[0, 1e10]]),
    ],
)
def test_what_is_no_label_number(pixels: np.ndarray) -> None:
    with raises_user_error("label", "mask"):
        indices(saved(pixels, "TIFF"), "mask")


def test_transparent_numbers_and_deep_colours_are_refused() -> None:
    labels = MAPS["photoa"]
    with raises_user_error("label", "mask"):
        indices(saved(with_alpha(grey(labels), 0)), "mask")
    deep = cv2.imencode(".png", grey(labels).astype(np.uint16))[1].tobytes()
    with raises_user_error("label", "mask"):
        indices(deep, "mask")


def test_numbers_that_no_class_can_have(tmp_path: Path) -> None:
    """Such as instances' numbers, of which a list of classes would fill the memory."""
    with raises_user_error("label", "masks"):
        prepared(tmp_path, lambda m: saved(m.astype(np.int32) * 999_999_999, "TIFF"), ".tif", "")


@pytest.mark.parametrize("classes", ["crack\n", "0,background\n255,crack\n"])
def test_a_list_names_the_object(tmp_path: Path, classes: str) -> None:
    two = LOSSY["two.jpg"]
    prepared(
        tmp_path,
        lambda labels: saved(np.asarray(Image.open(io.BytesIO(two(labels))).point(_two))),
        ".png",
        classes,
    )
    text = (tmp_path / "data/mine/classes.json").read_text()
    assert '"crack"' in text and '"background"' in text
    assert np.array_equal(label_map(tmp_path, "photoa"), MAPS["photoa"] == 1)


def _two(value: int) -> int:
    return 255 * (value > 127)


def test_numbers_with_gaps_have_the_names_of_a_table(tmp_path: Path) -> None:
    numbers = np.array([7, 26, 33], np.uint8)
    table = "id,name\n7,road\n26,car\n33,bike\n"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/classes.csv").write_text(table)
    prepared(tmp_path, lambda labels: saved(numbers[labels]), ".png", "")
    text = (tmp_path / "data/mine/classes.json").read_text()
    assert [name in text for name in ("road", "car", "bike", "ignore")] == [True, True, True, False]
    for name, labels in MAPS.items():
        assert np.array_equal(label_map(tmp_path, name), labels)


@pytest.mark.parametrize("kind", ["smooth", "slips"])
def test_colours_that_may_be_no_class_are_told(tmp_path: Path, kind: str) -> None:
    for n, name in enumerate(MAPS):
        labels = np.zeros((60, 80, 3), np.uint8)
        labels[20:, 30:] = 255
        if kind == "smooth":
            labels[18:20, 30:] = (60, 60, 60)
            labels[16:18, 30:] = labels[20:, 28:30] = (30, 30, 30)
            labels[14:16, 30:] = (20, 20, 20)
            labels[12:14, 30:] = (10, 10, 10)
        else:
            labels[0, 0] = (1, 0, 0)
        write_folder(tmp_path / "in/images", {f"{name}.jpg": jpeg(n, (80, 60))})
        write_folder(tmp_path / "in/masks", {f"{name}.png": saved(labels)})
    _, notes = recognised(tmp_path / "in")
    expected = "4 colours" if kind == "smooth" else "1 colours"
    assert any(note.startswith(expected) and "--classes" in note for note in notes)


def test_a_tiff_of_64_bits_says_so() -> None:
    with advises("datasets/prepare/labels.py:open_image", "64 bits", "save it as PNG"):
        indices(tiff(MAPS["photoa"].astype(np.int64)), "mask")
    assert np.array_equal(indices(saved(MAPS["photoa"]), "mask"), MAPS["photoa"])


def test_pointers_of_git_lfs_say_so() -> None:
    with advises("datasets/prepare/labels.py:open_image", "git lfs pull"):
        indices(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "mask")
