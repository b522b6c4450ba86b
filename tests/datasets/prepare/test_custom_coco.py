# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""COCO's files: what they draw, and every fault of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from custom_sets import custom, label_map, write_labelme
from tiny_archives import jpeg, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.class_names import read_classes
from mmseg_resnest.datasets.prepare import CustomReport


def coco_data() -> dict[str, Any]:
    return dict(
        images=[dict(id=n, file_name=f"a_{n}.jpg", height=6, width=8) for n in range(2)],
        categories=[dict(id=3, name="sky"), dict(id=5, name="road")],
        annotations=[
            dict(id=1, image_id=0, category_id=3, segmentation=[[0, 0, 4, 0, 4, 6, 0, 6]]),
            dict(id=2, image_id=0, category_id=5, segmentation=[[1, 1, 2, 1, 2, 2, 1, 2], [0] * 6]),
            dict(
                id=3, image_id=1, category_id=5, iscrowd=1,
                segmentation=dict(size=[6, 8], counts=[0, 48]),
            ),
        ],
    )  # fmt: skip


def _custom_coco(tmp_path: Path, data: dict[str, Any]) -> CustomReport:
    write_folder(tmp_path / "c/images", {f"a_{n}.jpg": jpeg(n) for n in range(2)})
    (tmp_path / "c/x.json").write_text(json.dumps(data))
    return custom(tmp_path, form="coco", sources=(tmp_path / "c/x.json",))


def test_coco(tmp_path: Path) -> None:
    _custom_coco(tmp_path, coco_data())
    expected = np.full((6, 8), 255, np.uint8)
    expected[:, :4] = 1
    expected[1, 1] = 0  # the later annotation lies over the earlier; names are sorted: road, sky
    np.testing.assert_array_equal(label_map(tmp_path, "a_0"), expected)
    assert (label_map(tmp_path, "a_1") == 0).all()
    assert read_classes(tmp_path / "data/mine/classes.json")["classes"] == ["road", "sky"]


def test_images_without_labels_are_noted(tmp_path: Path) -> None:
    data = coco_data()
    del data["annotations"][2]
    notes = _custom_coco(tmp_path, data).notes
    assert any("1 images have no labelled pixel, e.g. a_1" in note for note in notes)
    again = custom(tmp_path, form="coco", sources=(tmp_path / "c/x.json",))
    assert again.unchanged and again.notes == notes


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [("file_name", "gone.jpg", "not-found"), ("height", 7, "size-mismatch")],
)
def test_images_of_other_names_and_sizes(tmp_path: Path, key: str, value: Any, code: str) -> None:
    data = coco_data()
    data["images"][0][key] = value
    with raises_user_error(code, "x.json"):
        _custom_coco(tmp_path, data)


# Annotations and images of which something is wrong, and the kind that they are counted as.
FAULTS: dict[str, list[dict[str, Any]]] = {
    "with a box alone": [
        dict(segmentation=[]), dict(segmentation=None), dict(), dict(segmentation={})
    ],
    "with a polygon of fewer than three points": [
        dict(segmentation=[[1, 1, 2, 2]]), dict(segmentation=[[0, 0, 4, 0, 4, 4], [1, 1]]),
        dict(segmentation=[[]]), dict(segmentation=[[1, 2, 3]]),
    ],
    "with a polygon of an odd number": [dict(segmentation=[[0, 0, 4, 0, 4, 4, 1]])],
    "whose run lengths have another size": [
        dict(segmentation=dict(size=[8, 6], counts=[0, 48]), iscrowd=1)
    ],
    "that cannot be drawn": [
        dict(segmentation=dict(size=[6, 8], counts=[0, 47])), dict(segmentation=dict(counts=[48])),
        dict(segmentation=dict(size=[6, 8], counts="~~")),
        dict(segmentation=[[0, 0, "x", 0, 4, 4]]),
        dict(segmentation=[[0, 0, 1e9, 0, 4, 4]]),
        dict(segmentation=7),
    ],
    "of categories that are not listed": [dict(segmentation=[[0] * 6], category_id=99)],
    "of images that are not listed": [dict(segmentation=[[0] * 6], image_id=99)],
}  # fmt: skip


def _faultycoco_data() -> tuple[dict[str, Any], dict[str, int]]:
    """A COCO file with all faults, each in the right half of the first image; and their numbers."""
    data, counts = coco_data(), {}
    for kind, some in FAULTS.items():
        counts[kind] = len(some)
        for one in some:
            number = 100 + len(data["annotations"])
            data["annotations"].append(
                dict(id=number, image_id=0, category_id=5, bbox=[4.2, 0.5, 2, 9.1]) | one
            )
    data["images"] += [dict(id=n, file_name=f"gone_{n}.jpg") for n in (7, 8)]
    data["annotations"].append(dict(id=9, image_id=7, category_id=5, segmentation=[[0] * 6]))
    counts["images that are not there"] = 2
    return data, counts


def test_all_faults_of_coco_are_told_at_once_or_left_out(tmp_path: Path) -> None:
    data, counts = _faultycoco_data()
    with raises_user_error("annotation", "x.json") as error:
        _custom_coco(tmp_path, data)
    (tmp_path / "c/y.json").write_text(json.dumps(coco_data()).replace("a_", "b_"))
    write_folder(tmp_path / "c/images", {f"b_{n}.jpg": jpeg(n) for n in range(2)})
    files = (tmp_path / "c/x.json", tmp_path / "c/y.json")
    report = custom(tmp_path, form="coco", sources=files, allow_incomplete=True, background="sky")
    (note,) = [note for note in report.notes if "left out" in note]
    for text in (error.value.message, note):
        for kind, number in counts.items():
            assert re.search(rf"\b{number} (annotations )?{kind}", text), (kind, text)
        assert "id 103 of a_0.jpg, id 104 of a_0.jpg, id 105 of a_0.jpg, ..." in text
        assert "y.json" not in text
    # The boxes of what was left out are ignored, not background; the good shapes are there.
    expected = np.ones((6, 8), np.uint8)  # sky
    expected[:, 4:7] = 255
    expected[1, 1] = 0
    np.testing.assert_array_equal(label_map(tmp_path, "a_0"), expected)
    assert (label_map(tmp_path, "a_1") == 0).all()
    assert sum(len(names) for names in report.splits.values()) == 4
    with raises_user_error("argument", "--allow-incomplete"):
        custom(tmp_path, allow_incomplete=True, **write_labelme(tmp_path, ["x", "y"]))


@pytest.mark.parametrize("part", ["images", "categories"])
def test_ids_of_coco_that_stand_twice(tmp_path: Path, part: str) -> None:
    data = coco_data()
    data[part].append(dict(data[part][0]))
    with raises_user_error("annotation", "x.json"):
        _custom_coco(tmp_path, data)
