# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the numbers of masks mean: palettes, pages, 255, and lists of names."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from advice import advises, helps
from custom_sets import custom, label_map, masks, told
from PIL import Image
from tiny_archives import encoded, jpeg, labels_of, png_of, tiff, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare.labels import bit_palette

NAMES = "abcd"
SIZE = (32, 24)
COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0))


def indexed(numbers: np.ndarray, colours: Sequence[Sequence[int]]) -> bytes:
    """A PNG with a palette."""
    return png_of(numbers.astype(np.uint8), np.ravel(colours).tolist())


def truth(n: int, high: int = 3) -> np.ndarray:
    return labels_of(n, high, SIZE)


def write(folder: Path, masks_of: Sequence[bytes], end: str = "png") -> None:
    for n, (name, mask) in enumerate(zip(NAMES, masks_of, strict=True)):
        write_folder(folder, {f"images/{name}.jpg": jpeg(n, SIZE), f"masks/{name}.{end}": mask})


def renumbered(n: int) -> bytes:
    """A mask as a program saves it that numbers the colours of each file anew."""
    order = np.random.default_rng(n).permutation(3)
    return indexed(np.argsort(order)[truth(n)], [COLOURS[number] for number in order])


def test_palettes_that_differ_are_colours(tmp_path: Path) -> None:
    write(tmp_path / "s", [renumbered(n) for n in range(4)])
    report = told(tmp_path / "s")
    assert [row[1] for row in report.classes] == [(0, 0, 0), (0, 255, 0), (255, 0, 0)]
    for n, name in enumerate(NAMES):
        assert np.array_equal(label_map(tmp_path, name), np.array([0, 2, 1])[truth(n)])


def test_palettes_that_differ_hold_no_label_numbers(tmp_path: Path) -> None:
    options = masks(tmp_path) | {"sources": (tmp_path / "masks",)}
    write(tmp_path, [renumbered(n) for n in range(4)])
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")

    def save() -> None:
        write(tmp_path, [png_of(truth(n)) for n in range(4)])

    helps("datasets/prepare/masks.py:check_palettes", "save label numbers as grey images",
          call=lambda: custom(tmp_path, **options), remedy=save)  # fmt: skip
    assert np.array_equal(label_map(tmp_path, "a"), truth(0))


def test_palettes_that_differ_where_no_pixel_is(tmp_path: Path) -> None:
    """A program may drop the colours at the end that a file does not use, or change them."""
    palettes = [[*COLOURS, (n, n, 9)] for n in range(3)] + [COLOURS[:2]]
    numbers = [truth(n) for n in range(3)] + [truth(3, 2)]
    write(tmp_path / "s", [indexed(*one) for one in zip(numbers, palettes, strict=True)])
    assert [row[0] for row in told(tmp_path / "s").classes] == ["class_0", "class_1", "class_2"]
    assert np.array_equal(label_map(tmp_path, "d"), numbers[3])


def test_palettes_of_greys_are_greys(tmp_path: Path) -> None:
    white_first = [(255, 255, 255), (0, 0, 0)]
    write(tmp_path / "s", [indexed(truth(n, 2), white_first) for n in range(4)])
    (tmp_path / "s/classes.txt").write_text("nothing\ncrack\n")
    assert [row[0] for row in told(tmp_path / "s").classes] == ["nothing", "crack"]
    assert np.array_equal(label_map(tmp_path, "a"), 1 - truth(0, 2))


def test_few_of_the_numbers_of_voc(tmp_path: Path) -> None:
    """255 is the border, also where there are persons alone."""
    numbers = np.array([0, 15, 255])
    write(tmp_path / "s", [indexed(numbers[truth(n)], bit_palette()) for n in range(4)])
    report = told(tmp_path / "s")
    assert [row[0] for row in report.classes] == ["class_0", "class_15"]
    assert np.array_equal(label_map(tmp_path, "a"), np.array([0, 1, 255])[truth(0)])
    assert any("255 in the masks and ignored" in note for note in report.notes)


def test_palettes_and_tables_that_differ(tmp_path: Path) -> None:
    """VOC's masks, whose border no table lists, and its classes by name instead of by number."""
    place, table = tmp_path / "s", tmp_path / "s/labelmap.txt"
    numbers, palette = np.array([0, 1, 2, 255]), bit_palette()
    names = dict(zip(("sky", "cat", "dog"), palette[:3], strict=True))
    write(place, [indexed(numbers[truth(n, 4)], palette) for n in range(4)])

    def list_classes(*order: str) -> None:
        lines = (f"{name}:{','.join(map(str, names[name]))}::" for name in order)
        table.write_text("\n".join(lines))

    list_classes("cat", "dog", "sky")
    with raises_user_error("label", "masks"):  # asks what the border is
        told(place)
    helps("datasets/prepare/masks.py:check_palettes", "order of the numbers",
          call=lambda: told(place, form="index"),
          remedy=lambda: list_classes("sky", "cat", "dog"))  # fmt: skip
    assert [row[0] for row in told(place).classes] == ["sky", "cat", "dog"]
    assert np.array_equal(label_map(tmp_path, "a"), numbers[truth(0, 4)])
    list_classes("cat", "dog", "sky")
    table.write_text(f"{table.read_text()}\n__ignore__:224,224,192::")
    assert [row[0] for row in told(place).classes] == ["cat", "dog", "sky"]
    assert np.array_equal(label_map(tmp_path, "a"), np.array([2, 0, 1, 255])[truth(0, 4)])


@pytest.mark.parametrize("names", ["", "nothing\ncrack\n"])
def test_objects_that_are_1_here_and_255_there(tmp_path: Path, names: str) -> None:
    write(tmp_path / "s", [png_of(truth(n, 2) * np.uint8(255 if n % 2 else 1)) for n in range(4)])
    if names:
        (tmp_path / "s/classes.txt").write_text(names)
    assert any(note.startswith("2 masks hold 255") for note in told(tmp_path / "s").notes)
    write(tmp_path / "s", [png_of(truth(n, 2)) for n in range(4)])
    assert not any("masks hold 255" in note for note in told(tmp_path / "s").notes)


def test_some_masks_of_colours_and_others_of_numbers(tmp_path: Path) -> None:
    coloured = [encoded(np.array(COLOURS, np.uint8)[truth(n)], "PNG") for n in range(4)]
    write(tmp_path / "s", [*coloured[:2], *(png_of(truth(n)) for n in (2, 3))])
    assert any("others numbers?" in note for note in told(tmp_path / "s").notes)
    write(tmp_path / "s", coloured)
    assert not any("others numbers?" in note for note in told(tmp_path / "s").notes)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
def test_masks_of_several_pages(tmp_path: Path, kind: str) -> None:
    def pages(n: int) -> bytes:
        stream = io.BytesIO()
        first, *others = (Image.fromarray(truth(n + k)).convert("RGB") for k in range(3))
        options = {"lossless": True} if kind == "WEBP" else {}
        first.save(stream, kind, save_all=True, append_images=others, **options)
        return stream.getvalue()

    end = {"TIFF": "tif"}.get(kind, kind.lower())
    write(tmp_path / "s", [pages(n) for n in range(4)], end)
    with advises("datasets/prepare/labels.py:check_pages", "save each as a file of its own"):
        told(tmp_path / "s")
    for file in (tmp_path / "s/masks").iterdir():
        file.unlink()
    write(tmp_path / "s", [png_of(truth(n)) for n in range(4)])
    assert told(tmp_path / "s")


def test_overviews_of_a_mask_are_no_pages(tmp_path: Path) -> None:
    def with_overview(n: int) -> bytes:
        stream = io.BytesIO()
        with tifffile.TiffWriter(stream) as file:
            file.write(truth(n), photometric="minisblack", subifds=0)
            file.write(truth(n)[::2, ::2], photometric="minisblack", subfiletype=1)
        return stream.getvalue()

    write(tmp_path / "s", [with_overview(n) for n in range(4)], "tif")
    told(tmp_path / "s")
    assert np.array_equal(label_map(tmp_path, "a"), truth(0))


@pytest.mark.parametrize(("kind", "nothing"), [("u1", 200), ("i2", -9999), ("f4", "nan")])
def test_masks_of_maps_without_data(tmp_path: Path, kind: str, nothing: Any) -> None:
    """GDAL's tag says which value stands for none; 0 is the first class, whatever it says."""

    def mapped(n: int, nodata: Any, fill: Any) -> bytes:
        mask = truth(n).astype(kind)
        mask[0] = float(fill)
        tag = (42113, "s", 0, str(nodata), True)
        return tiff(mask, photometric="minisblack", extratags=[tag])

    for nodata, fill, read in ((nothing, nothing, 255), (0, 0, 0)):
        write(tmp_path / "s", [mapped(n, nodata, fill) for n in range(4)], "tif")
        told(tmp_path / "s")
        assert np.array_equal(label_map(tmp_path, "a")[1:], truth(0)[1:])
        assert (label_map(tmp_path, "a")[0] == read).all()


def test_masks_of_several_bands(tmp_path: Path) -> None:
    """One a class, of which a reader would take the first."""

    bands = [np.eye(2, dtype=np.uint8)[truth(n, 2)] for n in range(4)]
    options = dict(photometric="minisblack", planarconfig="contig")
    write(tmp_path / "s", [tiff(one, **options) for one in bands], "tif")
    with raises_user_error("label", "a.tif"):
        told(tmp_path / "s")


def test_masks_in_one_folder_of_images_in_several(tmp_path: Path) -> None:
    write(tmp_path / "s", [png_of(truth(n)) for n in range(4)])
    for name in NAMES:
        (tmp_path / f"s/images/{name}").mkdir()
        (tmp_path / f"s/images/{name}.jpg").rename(tmp_path / f"s/images/{name}/{name}.jpg")
    with raises_user_error("dataset", "masks/a.png"):
        told(tmp_path / "s")
    for name in NAMES:
        (tmp_path / f"s/masks/{name}").mkdir()
        (tmp_path / f"s/masks/{name}.png").rename(tmp_path / f"s/masks/{name}/{name}.png")
    assert told(tmp_path / "s").config


def test_a_mask_of_one_class_with_a_palette(tmp_path: Path) -> None:
    """What is black is not of the class, whatever number a program gave it."""
    for n, name in enumerate(NAMES):
        mask = indexed(truth(n, 2), [(255, 255, 255), (0, 0, 0)])
        write_folder(tmp_path, {f"images/{name}.jpg": jpeg(n, SIZE), f"masks/cat/{name}.png": mask})
    options = dict(form="masks", sources=(tmp_path / "masks",), multilabel=True)
    options["images"] = tmp_path / "images"

    def save() -> None:
        for n, name in enumerate(NAMES):
            write_folder(tmp_path / "masks/cat", {f"{name}.png": png_of(1 - truth(n, 2))})

    helps("datasets/prepare/planes.py:_area", "save it as a grey image",
          call=lambda: custom(tmp_path, **options), remedy=save)  # fmt: skip


def test_masks_of_the_converter_of_labelme(tmp_path: Path) -> None:
    """``labels.txt`` begins with -1, which its masks have as 255; arrays lie beside them."""
    for n, name in enumerate(NAMES):
        mask = truth(n)
        mask[0] = 255
        stream = io.BytesIO()
        np.save(stream, mask.astype(np.int8).astype(np.int32))
        write_folder(tmp_path / "s", {
            f"JPEGImages/{name}.jpg": jpeg(n, SIZE),
            f"SegmentationClass/{name}.npy": stream.getvalue(),
            f"SegmentationClassPNG/{name}.png": indexed(mask, bit_palette()),
            f"SegmentationClassVisualization/{name}.jpg": jpeg(n + 9, SIZE),
        })  # fmt: skip
    (tmp_path / "s/labels.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    report = told(tmp_path / "s")
    assert [row[0] for row in report.classes] == ["_background_", "cat", "dog"]
    assert np.array_equal(label_map(tmp_path, "a")[1:], truth(0)[1:])
    assert (label_map(tmp_path, "a")[0] == 255).all()


def test_ignored_pixels_of_16_bits(tmp_path: Path) -> None:
    """Where some programs write -1 it becomes 65535, of which a list of names took minutes."""
    maps = [truth(n).astype(np.uint16) for n in range(4)]
    for labels in maps:
        labels[labels == 2] = 65535

    def save() -> None:
        write(tmp_path / "s", [png_of(np.where(m > 255, 255, m).astype(np.uint8)) for m in maps])

    write(tmp_path / "s", [encoded(labels, "PNG") for labels in maps])
    helps("datasets/prepare/recognise_masks.py:found_masks", "save ignored",
          call=lambda: told(tmp_path / "s"), remedy=save)  # fmt: skip
    assert [row[0] for row in told(tmp_path / "s").classes] == ["class_0", "class_1"]
