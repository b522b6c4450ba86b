# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Trees with several kinds of labels of each image, and names that end in different ways."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from advice import advises
from custom_sets import label_map, told
from tiny_archives import encoded, jpeg, labels_of, png_of, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare.frames import numbered_groups

MAPS = {name: labels_of(n, 3) for n, name in enumerate("abcd")}
PARTS = {"train": "abc", "val": "d"}
COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)


def coloured(labels: np.ndarray) -> bytes:
    return encoded(COLOURS[labels], "PNG")


def write(folder: Path, images: str, **kinds: Any) -> Path:
    """Writes images and masks; ``{s}`` in a path is the part and ``{n}`` the name."""
    for s, names in PARTS.items():
        for n in names:
            write_folder(folder, {images.format(s=s, n=n): jpeg(ord(n))})
            for path, make in kinds.values():
                write_folder(folder, {path.format(s=s, n=n): make(MAPS[n])})
    return folder


def check(folder: Path, end: str = "", **options: Any) -> Any:
    """Prepares a folder, or its ``source``; the labels and the parts are those that were drawn."""
    source = options.pop("source", folder)
    report = told(folder if source is folder else folder / source, **options)
    assert report.splits == {s: [f"{n}{end}" for n in names] for s, names in PARTS.items()}
    numbers = [0, 2, 1] if report.classes[0][0].startswith("colour") else [0, 1, 2]
    data = folder.parent if source is folder else (folder / source).parent
    for n, labels in MAPS.items():
        assert np.array_equal(label_map(data, f"{n}{end}"), np.array(numbers)[labels])
    return report


BDD = {
    "images": "images/10k/{s}/{n}.jpg",
    "masks": ("labels/sem_seg/masks/{s}/{n}.png", png_of),
    "colormaps": ("labels/sem_seg/colormaps/{s}/{n}.png", coloured),
}


@pytest.mark.parametrize("kind", ["masks", "colormaps"])
@pytest.mark.parametrize("multilabel", [False, True])
def test_kinds_in_folders(tmp_path: Path, kind: str, multilabel: bool) -> None:
    """BDD100K's: they are no classes, which would be called ``masks`` and ``colormaps``."""
    folder = write(tmp_path / "s", **BDD)
    with advises("datasets/prepare/recognise_masks.py:_check_kinds", "--source", "--images"):
        told(folder, multilabel=multilabel)
    source = f"labels/sem_seg/{kind}"
    check(folder, source=source, images=folder / "images/10k")


def test_kinds_in_folders_are_moved(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", **BDD)
    with advises("datasets/prepare/recognise_masks.py:_check_kinds", "move the others elsewhere"):
        told(folder)
    shutil.rmtree(folder / "labels/sem_seg/colormaps")
    check(folder)


@pytest.mark.parametrize(
    ("image", "mask", "ends"),
    [
        ("leftImg8bit/{s}/x/{n}_0_leftImg8bit.png", "gtFine/{s}/x/{n}_0_gtFine_", "_leftImg8bit"),
        ("rgb_anon/{s}/{n}_0_rgb_anon.png", "gt/{s}/{n}_0_gt_", "_rgb_anon"),
        ("images/{s}/{n}_0.jpg", "labels/{s}/{n}_0_", ""),
    ],
)
def test_kinds_by_the_ends_of_names(tmp_path: Path, image: str, mask: str, ends: str) -> None:
    """As Cityscapes has them, and those that follow it."""
    folder = write(
        tmp_path / "s", image,
        ids=(f"{mask}labelIds.png", png_of), colours=(f"{mask}color.png", coloured),
        instances=(f"{mask}instanceIds.png", lambda m: encoded(m.astype(np.uint16) * 999, "PNG")),
    )  # fmt: skip
    with advises("datasets/prepare/recognise_masks.py:_check_kinds", "--label-suffix") as caught:
        told(folder)
    end = mask.rpartition("{n}_0")[2]
    assert all(f"'{end}{kind}'" in caught.value.message for kind in ("labelIds", "color"))
    for kind in ("labelIds", "color"):
        check(folder, f"_0{ends}", label_suffix=f"{end}{kind}")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{s}/{n}_sat.jpg", "{s}/{n}_mask.png"),  # DeepGlobe
        ("{s}/images/{n}_sat.jpg", "{s}/masks/{n}_mask.png"),
        ("images/{s}/{n}_sat.jpg", "labels/{s}/{n}.png"),
    ],
)
def test_images_whose_names_have_an_end(tmp_path: Path, image: str, mask: str) -> None:
    check(write(tmp_path / "s", image, masks=(mask, png_of)), "_sat")


def test_what_only_one_of_the_names_ends_in(tmp_path: Path) -> None:
    """An image folder with two kinds of images needs the end of those to take."""
    folder = write(tmp_path / "s", "images/{s}/{n}_rgb.jpg", masks=("labels/{s}/{n}.png", png_of))
    for s, names in PARTS.items():
        for n in names:
            write_folder(folder, {f"images/{s}/{n}_depth.png": png_of(MAPS[n])})
    with advises("datasets/prepare/masks.py:read_masks", "--image-suffix"):
        told(folder)
    check(folder, "_rgb", image_suffix="_rgb")
    with raises_user_error("argument", "--image-suffix"):
        told(folder, form="masks", multilabel=True, image_suffix="_rgb")


@pytest.mark.parametrize("mask", ["Labels_all/{s}/{n}_L.png", "Labels_all/{s}/{n}.png"])
def test_folders_of_any_name(tmp_path: Path, mask: str) -> None:
    """Who names them need not name the form of the labels, too."""
    folder = write(tmp_path / "s", "Stills_full/{s}/{n}.jpg", masks=(mask, png_of))
    with advises("datasets/prepare/recognise.py:recognise", "--source", "--images"):
        told(folder)
    check(folder, source="Labels_all", images=folder / "Stills_full")
    (folder / "Labels_all").rename(folder / "Stills_full/inside")
    check(folder, source="Stills_full/inside", images=folder / "Stills_full")


def test_several_masks_of_an_image_in_folders_of_images(tmp_path: Path) -> None:
    """Of Kaggle's nuclei: no mask has the name of an image, and no image is a mask."""
    for n, name in enumerate(MAPS):
        write_folder(tmp_path / "s" / name, {
            f"images/{name}.png": encoded(labels_of(n, 255), "PNG"),
            f"masks/x{name}.png": png_of((MAPS[name] == 1) * np.uint8(255)),
        })  # fmt: skip
    with raises_user_error("empty", "s"):
        told(tmp_path / "s")


def test_numbers_before_what_all_names_end_in() -> None:
    names = [f"{video}_{n:06d}_leftImg8bit" for video in ("aachen", "bonn") for n in (19, 7)]
    groups = numbered_groups(names)
    assert groups == {"aachen": names[1::-1], "bonn": names[:1:-1]}
    names = [f"v{n}_frame_0001" for n in range(3)]
    assert set(numbered_groups(names)) == {f"v{n}_frame" for n in range(3)}
