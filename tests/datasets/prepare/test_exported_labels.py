# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Label maps in the forms of annotation tools: nothing is lost, and no half of an export stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from custom_sets import custom, label_map, write_masks
from PIL import Image
from tiny_archives import labels_of, png_of, tree, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare import export_labels


@pytest.mark.parametrize("form", ["labelme", "coco", "coco-rle", "colour"])
def test_an_ignored_label_between_others(tmp_path: Path, form: str) -> None:
    write_masks(tmp_path, "01")  # of labels 0, 1 and 2
    classes = tmp_path / "classes.txt"
    classes.write_text("a\n__ignore__\nb\n")
    out = tmp_path / "out"
    export_labels(tmp_path / "images", tmp_path / "labels", classes, form, out, 1)
    kind, where = form.split("-")[0], out / ("masks" if form == "colour" else "")
    places: dict[str, Any] = dict(sources=(where,), images=out / "images")
    if form == "colour":
        places["classes"] = out / "colours.json"
    elif form == "labelme":
        places = dict(sources=(out,))
    report = custom(tmp_path, form=kind, **places)
    assert [name for name, *_ in report.classes] == ["a", "b"]
    for name in "01":
        labels = np.asarray(Image.open(tmp_path / f"labels/{name}.png"))
        expected = np.array([0, 255, 1], np.uint8)[labels]
        np.testing.assert_array_equal(label_map(tmp_path, name), expected)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    write_masks(tmp_path, "01")
    parts = tmp_path / "images", tmp_path / "labels"
    many = tmp_path / "many.txt"
    many.write_text("\n".join(f"c{n}" for n in range(256)))
    with raises_user_error("classes", "many.txt"):
        export_labels(*parts, many, "colour", tmp_path / "out", 1)
    write_folder(parts[1], {"1.png": png_of(labels_of(0, 3, (5, 5)))})
    before = tree(tmp_path)
    with raises_user_error("size-mismatch", "1.png"):
        export_labels(*parts, tmp_path / "classes.txt", "coco", tmp_path / "out", 1)
    assert tree(tmp_path) == before
    write_folder(parts[1], {"1.png": png_of(labels_of(0, 3))})
    (tmp_path / "out").mkdir()
    assert export_labels(*parts, tmp_path / "classes.txt", "coco", tmp_path / "out", 1) == 2
