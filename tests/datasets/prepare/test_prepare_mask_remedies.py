# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What messages on masks of folders tell to do helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from advice import advises, helps
from custom_sets import custom
from tiny_archives import (
    encoded,
    jpeg,
    labels_of,
    png_of,
    write_folder,
)  # fmt: skip

from mmseg_resnest.datasets.prepare.recognise import recognise


def test_colours_of_a_resized_mask(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    table = tmp_path / "classes.txt"
    table.write_text("a 0 0 0\nb 20 40 60\nc 80 100 120\n")
    for n in range(2):
        name = f"x{n}"
        write_folder(tmp_path / "s/images", {f"{name}.jpg": jpeg(n, (20, 20))})
        write_folder(tmp_path / "s/labels", {f"{name}.png": encoded(noise, "PNG")})

    def tell(classes: Path | None = None) -> Any:
        return recognise(tmp_path / "s", classes=classes)

    with advises("datasets/prepare/recognise_masks.py:_colour_rows", "--classes"):
        tell()
    assert tell(table).form == "colour"
    palette = np.uint8([[0, 0, 0], [20, 40, 60], [80, 100, 120]])
    for n in range(2):  # the masks from before that
        data = encoded(palette[labels_of(n, 3, (20, 20))], "PNG")
        write_folder(tmp_path / "s/labels", {f"x{n}.png": data})
    assert len(tell().rows) == 3


def test_masks_with_two_endings(tmp_path: Path) -> None:
    for split, end in (("train", "_mask"), ("val", "_label")):
        write_folder(tmp_path / f"s/{split}/images", {"a.jpg": jpeg(1), "b.jpg": jpeg(2)})
        for name in "ab":
            data = png_of(labels_of(1, 3))
            write_folder(tmp_path / f"s/{split}/masks", {f"{name}{end}.png": data})

    def rename() -> None:
        for file in (tmp_path / "s/val/masks").iterdir():
            file.rename(file.with_name(file.name.replace("_label", "_mask")))

    helps("datasets/prepare/recognise_masks.py:found_masks", "rename",
          call=lambda: recognise(tmp_path / "s"), remedy=rename)  # fmt: skip


def test_grey_masks_that_are_no_colours(tmp_path: Path) -> None:
    """Names without colours name label numbers, never colours of the masks."""
    table = tmp_path / "few.txt"
    table.write_text("a\nb\n")
    for n in range(2):
        write_folder(tmp_path / "s/images", {f"x{n}.jpg": jpeg(n, (20, 20))})
        labels = labels_of(n, 6, (20, 20))
        write_folder(tmp_path / "s/labels", {f"x{n}.png": png_of(labels)})
        write_folder(tmp_path / "wide/images", {f"x{n}.jpg": jpeg(n, (20, 20))})
        wide = encoded(labels.astype(np.uint16) * 100, "PNG")
        write_folder(tmp_path / "wide/labels", {f"x{n}.png": wide})
    assert recognise(tmp_path / "s", classes=table).form == "index"
    with advises("datasets/prepare/colours.py:_colours", "see --format index"):
        recognise(tmp_path / "wide", "colour")
    with advises("datasets/prepare/recognise_masks.py:found_masks", "are 0 to 254"):
        recognise(tmp_path / "wide")
    found = recognise(tmp_path / "s", "colour", table)
    assert (found.classes, found.rows) == (table, ())  # its colours are asked for


def test_masks_of_a_single_colour(tmp_path: Path) -> None:
    def masks(second: int) -> None:
        for n in range(3):
            write_folder(tmp_path / "images", {f"a_{n}.jpg": jpeg(n)})
            mask = np.full((6, 8, 3), 40, np.uint8)
            mask[:, : n * second] = 90
            write_folder(tmp_path / "labels", {f"a_{n}.png": encoded(mask, "PNG")})

    table = tmp_path / "colours.txt"
    table.write_text("a 40 40 40\n")
    masks(0)
    options = dict(sources=(tmp_path / "labels",), images=tmp_path / "images", classes=table)
    helps(
        "datasets/prepare/custom.py:_unknown_colours", "label a second class",
        call=lambda: custom(tmp_path, form="colour", **options),
        remedy=lambda: (masks(2), table.write_text("a 40 40 40\nb 90 90 90\n")),
    )  # fmt: skip
