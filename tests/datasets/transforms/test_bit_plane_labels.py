# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Labels of classes that overlap: what is loaded, and that transforms move all classes alike."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from advice import advises
from mmengine.dataset import Compose
from numpy.typing import NDArray
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.datasets.transforms import LoadMultilabel
from mmseg_resnest.io.bit_planes import pack, to_file
from mmseg_resnest.registry import DATASETS, building


def sample(folder: Path, bits: NDArray[Any], classes: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*bits.shape, 3)).astype(np.uint8)
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(to_file(bits, classes)).save(folder / "labels.png")
    return dict(
        img_path=str(folder / "image.png"), seg_map_path=str(folder / "labels.png"),
        label_map=None, reduce_zero_label=False, seg_fields=[],
    )  # fmt: skip


def blobs(classes: int, height: int = 30, width: int = 40) -> NDArray[np.uint8]:
    rng = np.random.default_rng(classes)
    small = rng.integers(0, 2, (classes, height // 5, width // 5)).astype(np.uint8)
    planes = small.repeat(5, axis=1).repeat(5, axis=2)
    planes[:, 10:15, 5:15] = 255
    return planes


def run(steps: list[dict[str, Any]], start: dict[str, Any]) -> Any:
    with building("mmseg_resnest"):
        pipeline = Compose(copy.deepcopy(steps))
    np.random.seed(3)
    return pipeline(start)


LOAD = dict(type="LoadImageFromFile")
PACK = dict(type="PackSegInputs")


@pytest.mark.parametrize("classes", [1, 3, 7, 9, 15, 16, 31, 63])
def test_loaded(tmp_path: Path, classes: int) -> None:
    planes = blobs(classes)
    start = sample(tmp_path, pack(planes), classes)
    done = run([LOAD, dict(type="LoadMultilabel", num_classes=classes), PACK], start)
    found = done["data_samples"].gt_sem_seg.data.numpy()
    assert found.dtype == np.uint8
    assert np.array_equal(found, planes)


@pytest.mark.parametrize(
    "step",
    [
        dict(type="RandomFlip", prob=1.0, direction="vertical"),
        dict(type="Resize", scale=(53, 41)),
        dict(type="RandomCrop", crop_size=(20, 24)),
        dict(type="RandomRotate", prob=1.0, degree=(15, 15)),
        dict(type="Pad", size=(50, 37)),
        dict(type="RandomResizeCrop", scale=(60, 45), crop_size=(32, 32), ratio_range=(0.5, 2)),
        dict(type="RandomLongEdgeCrop", crop_size=(64, 64), base_size=40),
        dict(type="RandomCutOut", prob=1.0, n_holes=2, cutout_shape=(6, 8)),
    ],
    ids=lambda step: step["type"],
)
@pytest.mark.parametrize("classes", [3, 9, 33])
def test_all_classes_move_alike(tmp_path: Path, step: dict[str, Any], classes: int) -> None:
    planes = blobs(classes)
    load = dict(type="LoadMultilabel", num_classes=classes)
    moved = run([LOAD, load, step, PACK], sample(tmp_path, pack(planes), classes))
    found = moved["data_samples"].gt_sem_seg.data.numpy()
    assert found.shape[1:] == tuple(moved["inputs"].shape[1:])
    for c, plane in enumerate(planes):  # each as if it were alone
        alone = sample(tmp_path, plane)
        one = run([LOAD, dict(type="LoadAnnotations"), step, PACK], alone)
        expected = one["data_samples"].gt_sem_seg.data[0].numpy()
        assert np.array_equal(found[c], expected)


def test_the_largest_set_of_a_crop_is_bounded(tmp_path: Path) -> None:
    planes = np.zeros((2, 30, 40), np.uint8)
    planes[:, :4, :4] = 1
    step = dict(type="RandomCrop", crop_size=(8, 8), cat_max_ratio=0.9)
    load = dict(type="LoadMultilabel", num_classes=2)
    start = sample(tmp_path, pack(planes))
    found = run([LOAD, load, step, PACK], start)["data_samples"].gt_sem_seg.data
    assert found.shape == (2, 8, 8)
    assert 0 < found[0].sum() == found[1].sum()  # one without any class was drawn again


def test_files_that_are_refused(tmp_path: Path) -> None:
    load = LoadMultilabel(3)
    wrong = np.full((4, 6), 8, np.uint8)
    with raises_user_error("label", "labels.png"):
        load(sample(tmp_path, wrong))
    with raises_user_error("label", "labels.png"):
        load(sample(tmp_path, np.full((4, 6), 255, np.uint16)))
    start = sample(tmp_path, np.zeros((4, 6), np.uint8))
    assert cv2.imwrite(start["seg_map_path"], np.zeros((4, 6, 3), np.uint8))
    with raises_user_error("label", "labels.png"):
        load(start)
    start = sample(tmp_path, np.zeros((4, 6), np.uint8))
    with raises_user_error("size-mismatch", "labels.png"):
        load({**start, "ori_shape": (4, 7)})
    with advises("datasets/transforms/multilabel.py:load", "remove it") as told:
        load({**start, "label_map": {1: 0}})
    assert told.value.code == "config-conflict"
    Path(start["seg_map_path"]).unlink()
    with raises_user_error("not-found", "labels.png"):
        load(start)
    start = sample(tmp_path, np.zeros((4, 6), np.uint32), 20)
    with raises_user_error("label", "labels.png"):
        LoadMultilabel(40)({**start, "ori_shape": (4, 6)})  # three maps, not two
    wide = np.zeros((4, 12), np.uint16)
    wide[0, 7] = 1 << 5  # class 20
    Image.fromarray(wide).save(start["seg_map_path"])
    with raises_user_error("label", "labels.png"):
        LoadMultilabel(20)({**start, "ori_shape": (4, 6)})
    LoadMultilabel(21)({**start, "ori_shape": (4, 6)})
    for number in (0, 64, True, "3"):
        with raises_user_error("config-value", "num_classes"):
            LoadMultilabel(number)  # type: ignore[arg-type]


def test_rare_classes_are_repeated(tmp_path: Path) -> None:
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        planes = np.zeros((2, 20, 20), np.uint8)
        planes[0, :5], planes[1, 5:, :9] = 1, int(i == 3)
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / f"images/{i}.png")
        Image.fromarray(pack(planes)).save(tmp_path / f"annotations/{i}.png")
    inner = dict(
        type="CustomDataset", data_root=str(tmp_path), metainfo=dict(classes=("a", "b")),
        data_prefix=dict(img_path="images", seg_map_path="annotations"),
        pipeline=[LOAD, dict(type="LoadMultilabel", num_classes=2), PACK],
    )  # fmt: skip
    with building("mmseg_resnest"):
        dataset: Any = DATASETS.build(
            dict(type="ClassBalancedDataset", oversample_thr=1.0, dataset=inner)
        )
    paths = [Path(dataset.get_data_info(i)["img_path"]).stem for i in range(len(dataset))]
    assert paths == ["0", "1", "2", "3", "3"]
