# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The drawn detection data set: equal everywhere, with boxes and masks that COCO's code reads."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from user_errors import raises_user_error

from mmseg_resnest.datasets.shapes import SHAPES, draw_shapes, write_shapes


def test_the_same_pixels_on_every_machine():
    digest = hashlib.sha256()
    for split in ("train2017", "val2017"):
        for index in range(3):
            image, found = draw_shapes(0, index, split)
            digest.update(image.tobytes())
            digest.update(
                b"".join(bytes([kind]) + np.packbits(mask).tobytes() for kind, mask in found)
            )
    assert digest.hexdigest()[:16] == "d5fad1af74b7e9c4"


def test_what_is_drawn_is_seen_and_of_every_kind():
    kinds = np.zeros(len(SHAPES), dtype=int)
    for index in range(100):
        image, found = draw_shapes(1, index)
        assert image.shape == (128, 160, 3) and 1 <= len(found) <= 5
        masks = np.stack([mask for _, mask in found])
        assert masks.sum(axis=0).max() == 1  # a pixel is of one shape
        assert masks.sum(axis=(1, 2)).min() > 50
        kinds[[kind for kind, _ in found]] += 1
    assert kinds.min() > 25


def test_files_are_what_was_drawn(tmp_path, capsys):
    names = ("person", "bicycle", "car", "motorcycle")
    root = write_shapes(tmp_path / "coco", 3, 2, seed=5, names=names, progress=False)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert write_shapes(root, 3, 2, seed=5, names=names, progress=False) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    for split, count in (("train2017", 3), ("val2017", 2)):
        coco = COCO(str(root / "annotations" / f"instances_{split}.json"))
        assert len(coco.imgs) == count
        assert tuple(one["name"] for one in coco.loadCats(coco.getCatIds())) == names
        for index in range(count):
            image, found = draw_shapes(5, index, split)
            entry = coco.imgs[index + 1]
            assert (entry["height"], entry["width"]) == image.shape[:2]
            assert (np.asarray(Image.open(root / split / entry["file_name"])) == image).all()
            rows = coco.loadAnns(coco.getAnnIds(index + 1))
            assert [row["category_id"] for row in rows] == [kind + 1 for kind, _ in found]
            for row, (_, mask) in zip(rows, found, strict=True):
                assert (coco.annToMask(row) == mask).all() and row["area"] == mask.sum()
                y, x = np.nonzero(mask)
                left, top, width, height = row["bbox"]
                assert (left, top, left + width, top + height) == (
                    *(x.min(), y.min()), *(x.max() + 1, y.max() + 1)
                )  # fmt: skip
    with raises_user_error("output-exists", root):
        write_shapes(root, 4, 2, seed=5, names=names)
    facts = json.loads((root / "shapes.json").read_text())
    assert facts["names"] == list(names) and facts["seed"] == 5


@pytest.mark.parametrize(
    ("call", "subject"),
    [
        (lambda root: draw_shapes(0, 0, "test2017"), "split"),
        (lambda root: draw_shapes(-1, 0), "seed"),
        (lambda root: write_shapes(root, num_val=0), "num_val"),
        (lambda root: write_shapes(root, names=("a", "a", "b", "c")), "names"),
    ],
)
def test_arguments_out_of_range(call, subject, tmp_path):
    with raises_user_error("argument", subject):
        call(tmp_path / "shapes")
    assert not list(tmp_path.iterdir())
