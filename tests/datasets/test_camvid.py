# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from real_data import DATA, needs
from user_errors import raises_user_error

from mmseg_resnest.datasets.camvid import CamVidDataset
from mmseg_resnest.registry import DATASETS

PIPELINE = [dict(type="mmseg.LoadImageFromFile"), dict(type="mmseg.LoadAnnotations")]
PREFIX = dict(img_path="train", seg_map_path="trainannot")


def _write(root: Path, names: list[str], label: np.ndarray | None = None) -> None:
    (root / "train").mkdir(parents=True, exist_ok=True)
    (root / "trainannot").mkdir(exist_ok=True)
    if label is None:
        label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = np.zeros((*label.shape, 3), dtype=np.uint8)
    for name in names:
        Image.fromarray(image).save(root / "train" / name)
        Image.fromarray(label).save(root / "trainannot" / f"{Path(name).stem}.png")


def _build(root: Path, **kwargs) -> CamVidDataset:
    kwargs = {"data_prefix": PREFIX, "pipeline": PIPELINE, **kwargs}
    return DATASETS.build(dict(type="CamVidDataset", data_root=str(root), **kwargs))


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(2, 9),  # the stack's loader squeezes sides of one pixel away
    width=st.integers(2, 9),
    seed=st.integers(0, 2**32 - 1),
    suffixes=st.lists(st.sampled_from([".jpg", ".png"]), min_size=1, max_size=4),
)
def test_void_is_ignored_and_suffixes_may_mix(height, width, seed, suffixes):
    label = np.random.default_rng(seed).integers(0, 12, (height, width), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{number:02d}{suffix}" for number, suffix in enumerate(suffixes)]
        _write(Path(folder), names, label)
        dataset = _build(Path(folder))
        assert [Path(dataset[i]["img_path"]).name for i in range(len(dataset))] == names
        for sample in dataset:
            assert sample["img"].shape == (height, width, 3)
            seg_map = sample["gt_seg_map"]
            np.testing.assert_array_equal(seg_map, np.where(label == 11, 255, label))


def test_a_subset_of_the_classes(tmp_path):
    _write(tmp_path, ["a.png"])
    dataset = _build(tmp_path, metainfo=dict(classes=("Car", "Sky")))
    expected = np.full((3, 4), 255)
    expected[0, 0], expected[2, 0] = 1, 0
    np.testing.assert_array_equal(dataset[0]["gt_seg_map"], expected)
    assert dataset.metainfo["palette"] == [[64, 0, 128], [128, 128, 128]]


def test_images_without_labels_to_predict_on(tmp_path):
    _write(tmp_path, ["a.jpg"])
    dataset = _build(tmp_path, data_prefix=dict(img_path="train"), pipeline=[], test_mode=True)
    assert "seg_map_path" not in dataset[0]


@pytest.mark.parametrize("folder", ["train", "trainannot"])
@pytest.mark.parametrize("state", ["missing", "empty"])
def test_missing_or_empty_folder(tmp_path, folder, state):
    _write(tmp_path, ["a.jpg"])
    for file in (tmp_path / folder).iterdir():
        file.unlink()
    if state == "missing":
        (tmp_path / folder).rmdir()
    with raises_user_error("not-found" if state == "missing" else "empty", tmp_path / folder):
        _build(tmp_path)


@pytest.mark.parametrize(
    ("names", "gone", "code", "named"),
    [
        (["a.jpg", "b.png"], "trainannot/b.png", "not-found", "trainannot/b.png"),
        (["a.jpg", "b.png"], "train/b.png", "dataset", "trainannot/b.png"),
        (["a.jpg", "a.png"], None, "dataset", "a.png"),
    ],
    ids=["no label map", "no image", "the same image twice"],
)
def test_files_that_do_not_fit(tmp_path, names, gone, code, named):
    _write(tmp_path, names)
    if gone:
        (tmp_path / gone).unlink()
    with raises_user_error(code, named):
        _build(tmp_path)


@needs("camvid")
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_real_images(split, count):
    root = DATA / "camvid"
    dataset = _build(root, data_prefix=dict(img_path=split, seg_map_path=f"{split}annot"))
    assert len(dataset) == count
    sample = dataset[0]
    assert sample["img"].shape == (360, 480, 3)
    assert set(np.unique(sample["gt_seg_map"])) <= {*range(11), 255}
