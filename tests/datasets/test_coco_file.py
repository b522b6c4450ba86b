# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""COCO's files that MMDetection would misread are refused before it reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from advice import advises
from user_errors import raises_user_error

from mmseg_resnest.datasets.coco_file import check_coco
from mmseg_resnest.datasets.shapes import SHAPES, write_shapes

Check = Callable[..., None]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Check the file of two drawn images after a change of its content."""
    root = write_shapes(tmp_path / "shapes", 2, 1, progress=False)
    file = root / "annotations" / "instances_train2017.json"
    written = file.read_text()

    def run(change: Callable[[Any], Any] = lambda data: None, **options: Any) -> None:
        data = json.loads(written)
        change(data)
        file.write_text(json.dumps(data))
        check_coco(file, root / "train2017", options.pop("classes", SHAPES), **options)

    return run


def first(part: str, **values: object) -> Callable[[Any], None]:
    return lambda data: data[part][0].update(values)


def without(part: str, key: str) -> Callable[[Any], None]:
    return lambda data: data[part][0].pop(key)


FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no images": (lambda data: data.pop("images"), "no list `images`"),
    "no name": (without("images", "file_name"), "`images` 0 (id 1) has no `file_name`, text"),
    "no height": (without("images", "height"), "no `height`"),
    "no box": (without("annotations", "bbox"), "no `bbox`, a list"),
    "no area": (without("annotations", "area"), "no `area`"),
    "true": (first("annotations", area=True), "no `area`"),
    "no category": (without("annotations", "category_id"), "no `category_id`"),
    "no object": (lambda data: data["images"].__setitem__(0, 7), "`images` 0 has no `id`"),
    "unknown category": (first("annotations", category_id=9), "category 9, which is not in"),
    "unknown image": (first("annotations", image_id=9), "image 9, which is not in"),
    "twice": (first("annotations", id=2), "the id 2 twice"),
    "same name": (first("categories", name="cross"), "the name cross twice"),
    "three numbers": (first("annotations", bbox=[1, 2, 3]), "`bbox` that is not"),
    "nan": (first("annotations", bbox=[1, 2, 3, float("nan")]), "`bbox` that is not"),
    "no number": (first("annotations", bbox=[1, 2, 3, "4"]), "`bbox` that is not"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_its_entry(check: Check, fault: str) -> None:
    change, words = FAULTS[fault]
    with raises_user_error("annotation", "instances_train2017.json") as told:
        check(change)
    assert words in told.value.message


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "has no `segmentation`"),
        ([], "has no `segmentation`"),
        (dict(size=[10, 10], counts="x"), "of size [10, 10]"),
        (dict(size=[128, 160]), "no run lengths"),
        ([1, 2, 3, 4, 5, 6], "a polygon that is not a list of numbers"),
    ],
)
def test_outlines_count_where_masks_are_trained(
    check: Check, segmentation: object, words: str
) -> None:
    change = first("annotations", segmentation=segmentation)
    check(change)
    with raises_user_error("annotation") as told:
        check(change, masks=True)
    assert words in told.value.message
    # of a box without area MMDetection reads no outline
    check(first("annotations", segmentation=segmentation, area=0), masks=True)


def test_what_mmdetection_takes_is_taken(check: Check) -> None:
    check(masks=True)
    check(first("annotations", segmentation=[[1, 2, 30, 4, 5, 60]], iscrowd=1), masks=True)
    check(first("annotations", bbox=[5, 5, 0, 0], area=0))
    check(lambda data: data["categories"].append(dict(id=9, name="none of ours")))
    check(lambda data: data["images"].reverse())
    check(lambda data: data.pop("annotations"), labelled=False)
    check(lambda data: data["categories"].reverse(), classes=None)


def test_labels_go_by_the_order_of_categories(check: Check) -> None:
    with advises("datasets/coco_file.py:_check_classes", "write both in the same order") as told:
        check(lambda data: data["categories"].reverse())
    assert told.value.code == "classes"
    check(lambda data: data["categories"].reverse(), classes=SHAPES[::-1])
    with advises("datasets/coco_file.py:_check_classes", "add them to the file") as told:
        check(classes=(*SHAPES, "star"))
    assert told.value.code == "classes" and "such as star" in told.value.message
    check(
        lambda data: data["categories"].append(dict(id=5, name="star")), classes=(*SHAPES, "star")
    )


def test_scores_need_to_know_crowds(check: Check) -> None:
    change = without("annotations", "iscrowd")
    check(change)
    with raises_user_error("annotation") as told:
        check(change, scored=True)
    assert "`annotations` 0 (id 1) has no `iscrowd`" in told.value.message
    check(scored=True)


def test_nothing_to_train_on(check: Check) -> None:
    for change in (
        lambda data: data["annotations"].clear(),
        lambda data: [one.update(area=0) for one in data["annotations"]],
        lambda data: [one.update(iscrowd=1) for one in data["annotations"]],
        lambda data: (data["annotations"].clear(), data["images"].clear()),
    ):
        with raises_user_error("empty", "instances_train2017.json"):
            check(change)


def test_an_image_that_is_not_there(check: Check) -> None:
    with raises_user_error("not-found", "train2017/gone.jpg") as told:
        check(first("images", file_name="gone.jpg"))
    assert "instances_train2017.json" in told.value.message
    with raises_user_error("not-found", "train2017/a/gone.jpg"):
        check(first("images", file_name="a/gone.jpg"))


@pytest.mark.parametrize("text", ["", '{"images": [', "[1]"])
def test_a_file_that_is_cut_short(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with raises_user_error(("format", "annotation"), "a.json"):
        check_coco(tmp_path / "a.json", tmp_path, SHAPES)
