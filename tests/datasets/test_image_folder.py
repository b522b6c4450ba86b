# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Folders of classes: what they list, and what is refused, with what helps."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from advice import advises
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.datasets import ImageFolder, write_scenes
from mmseg_resnest.datasets.class_crops import write_class_crops
from mmseg_resnest.datasets.image_folder import class_folders
from mmseg_resnest.engine.config import load_config


def fill(root: Path, names: tuple[str, ...] = ("n01", "n02")) -> Path:
    for split in ("train", "val"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / split / name / f"{split}.JPEG", "JPEG")
    return root


def test_samples_are_those_of_the_sorted_folders(tmp_path: Path) -> None:
    root = fill(tmp_path, ("n02", "n01"))
    (root / "train/n01/deeper").mkdir()
    Image.new("RGB", (8, 8)).save(root / "train/n01/deeper/a.png")
    (root / "train/n01/notes.txt").write_text("no image")
    (root / "train/.hidden").mkdir()
    dataset = ImageFolder(str(root), "train")
    assert dataset.metainfo["classes"] == ("n01", "n02")
    samples = [dataset.get_data_info(i) for i in range(len(dataset))]
    found = [(Path(one["img_path"]).relative_to(root), one["gt_label"]) for one in samples]
    assert found == [
        (Path("train/n01/deeper/a.png"), 0),
        (Path("train/n01/train.JPEG"), 0),
        (Path("train/n02/train.JPEG"), 1),
    ]


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "images"
    train = root / "train"
    root.mkdir()
    with advises("datasets/image_folder.py:class_folders", "does not exist"):
        class_folders(train)
    train.write_text("")
    with advises("datasets/image_folder.py:class_folders", "is not a folder"):
        class_folders(train)
    train.unlink()
    train.mkdir()
    with advises("datasets/image_folder.py:class_folders", "has no folder of a class"):
        class_folders(train)
    (train / "n01").mkdir()
    with advises("datasets/image_folder.py:class_folders", "has no image"):
        class_folders(train)
    shutil.rmtree(root)
    fill(root)  # what all of them tell to do
    assert class_folders(train) == class_folders(root / "val") == ["n01", "n02"]
    shutil.rmtree(root / "val/n02")
    with raises_user_error("classes", train):
        class_folders(root / "val")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 8, 6, progress=False)


def test_crops_are_of_one_class(scenes: Path, tmp_path: Path) -> None:
    """Each crop is a piece of its image, most of which its label map gives to the class."""
    cfg = load_config("fcn_resnest14_scenes", {"data_root": str(scenes)})
    counts = write_class_crops(cfg, tmp_path / "crops", size=32, share=0.6)
    names = class_folders(tmp_path / "crops/val")
    assert counts["train"][1] == counts["val"][1] == len(names) > 2
    classes = cfg_classes()
    files = list((tmp_path / "crops").glob("*/*/*.png"))
    assert len(files) == counts["train"][0] + counts["val"][0]
    for file in files:
        stem, row, column = file.stem.split("_", 1)[1].rsplit("_", 2)
        split = "training" if file.parts[-3] == "train" else "validation"
        rows, columns = slice(int(row), int(row) + 32), slice(int(column), int(column) + 32)
        pixels = np.asarray(Image.open(scenes / "images" / split / f"{stem}.png"))[rows, columns]
        assert np.array_equal(np.asarray(Image.open(file)), pixels)
        labels = np.asarray(Image.open(scenes / "annotations" / split / f"{stem}.png"))
        share = (labels[rows, columns] == classes.index(file.parent.name) + 1).mean()
        assert share >= 0.6


def cfg_classes() -> tuple[str, ...]:
    from mmseg_resnest.datasets import ScenesDataset

    return ScenesDataset.METAINFO["classes"]


def test_crops_that_cannot_be_cut_are_refused(scenes: Path, tmp_path: Path) -> None:
    cfg = load_config("fcn_resnest14_scenes", {"data_root": str(scenes)})
    out = tmp_path / "crops"
    with raises_user_error("argument", "--size"):
        write_class_crops(cfg, out, size=4)
    with raises_user_error("argument", "--share"):
        write_class_crops(cfg, out, share=0.0)
    with advises("datasets/class_crops.py:write_class_crops", "make --size or"):
        write_class_crops(cfg, out, size=200)
    assert not list(tmp_path.iterdir())  # nothing is left
    out.mkdir()
    with advises("datasets/class_crops.py:write_class_crops", "name a new folder"):
        write_class_crops(cfg, out)
    (tmp_path / "file").write_text("")
    with advises("io/atomic.py:atomic_path", "choose another folder"):
        write_class_crops(cfg, tmp_path / "file/crops", size=64)
    write_class_crops(cfg, tmp_path / "new", size=64)  # what both tell to do
