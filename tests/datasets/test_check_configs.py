# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Configs that contradict their labels or images, found by the check of data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from check_sets import (
    TRAIN,
    base_config,
    check,
    clean,
    config,
    data,
    datasets_of,
    first,
    only,
    relabel,
    set_pixel,
    with_data,
)
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.datasets.check import (
    check_start,
)

__all__ = ["clean", "data"]  # fixtures


def test_reduce_zero_label_that_contradicts_the_labels(data: Path) -> None:
    relabel(data, {11: 255})  # 0 = the first class and 255 ignored, read as if 0 were unlabelled
    assert check(base_config(data)).problems == []
    with raises_user_error("dataset", "reduce_zero_label of BaseSegDataset"):
        check_start(base_config(data, reduce_zero_label=True))


def test_a_needless_reduce_zero_label_without_255(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Either 0 is a class, or the last class occurs in none of these few files: no error.
    relabel(data, {11: 0})
    cfg = base_config(data, reduce_zero_label=True)
    assert {p.severity for p in check(cfg).by_rule["reduce_zero_label"]} == {"warning"}
    check_start(cfg)
    # More files, which the start looks at only where a sample leaves doubts, make it one.
    monkeypatch.setattr("mmseg_resnest.datasets.check.labels._ENOUGH_FILES", 5)
    with raises_user_error("dataset", "reduce_zero_label") as caught:
        check_start(cfg, files=2)
    assert "in 6 files" in caught.value.message
    monkeypatch.undo()
    set_pixel(first(data, "trainannot", 0), 11)  # the last class after all
    assert "reduce_zero_label" not in check(cfg, splits=["train"]).by_rule


def test_a_needless_reduce_zero_label_with_two_classes(data: Path) -> None:
    relabel(data, {k: k % 2 for k in range(12)})
    cfg = base_config(data, 2, reduce_zero_label=True)
    found = check(cfg).by_rule["reduce_zero_label"]
    # In so few images to validate on, the second class may be missing rightly.
    assert [(p.split, p.severity) for p in found] == [("train", "error"), ("val", "warning")]
    with raises_user_error("dataset", "reduce_zero_label"):
        check_start(cfg)
    check_start(cfg, files=1)  # nor does a part of the files tell: five of six


def test_ignore_index_that_contradicts_the_labels(data: Path) -> None:
    relabel(data, {11: 200})
    cfg = base_config(data)
    cfg.model.decode_head.ignore_index = 200
    found = check(cfg).by_rule
    assert "label_out_of_range" not in found
    assert {p.file for p in found["ignore_index"]} == {
        "ignore_index of BaseSegDataset (train)",
        "ignore_index of BaseSegDataset (val)",
        "config key val_evaluator.ignore_index",
    }
    cfg.model.decode_head.ignore_index = 3
    keys = [p.file for p in check(cfg).by_rule["ignore_index"] if "Road" in p.what]
    assert keys == ["config key model.decode_head.ignore_index"]


def test_transforms_fill_with_classes_or_what_is_ignored(clean: Path) -> None:
    cfg = config(clean)
    steps = [
        dict(type="RandomRotate", prob=1.0, degree=9, seg_pad_val=200),
        dict(type="Pad", size=(9, 9)),
    ]
    cfg.train_dataloader.dataset.pipeline += [dict(type="RandomApply", transforms=steps)]
    (problem,) = check(cfg).by_rule["ignore_index"]
    assert problem.file.startswith("config key train_dataloader.dataset.pipeline.")
    assert problem.file.endswith(".transforms.0.seg_pad_val") and "200" in problem.what
    steps[0]["seg_pad_val"] = 0  # black pixels of a background are a class of their own
    cfg.train_dataloader.dataset.pipeline[-1] = dict(type="RandomApply", transforms=steps)
    assert "ignore_index" not in check(cfg).by_rule


def test_black_and_white_masks(data: Path) -> None:
    relabel(data, {k: 255 * (k > 3) for k in range(12)})
    assert only(base_config(data, 2), "ignore_index").file.startswith("label maps of")
    (data / ".prepare").mkdir()  # prepare-data refuses such masks: these have one class of two
    assert "ignore_index" not in check(base_config(data, 2)).by_rule


def test_number_of_classes_that_contradicts_the_head(clean: Path) -> None:
    cfg = config(clean)
    cfg.model.decode_head.num_classes = 10
    cfg.model.auxiliary_head = [{"type": "FCNHead", "num_classes": 19}]
    found = {p.file: p.what for p in check(cfg).by_rule["num_classes"]}
    assert "10" in found.pop("config key model.decode_head.num_classes")
    assert "19" in found.pop("config key model.auxiliary_head.0.num_classes")
    assert not found
    with raises_user_error("dataset", "config key model.decode_head.num_classes"):
        check_start(cfg)


def test_channels_and_values_that_the_model_does_not_take(data: Path) -> None:
    cfg = config(data)
    preparation = dict(type="SegDataPreProcessor", mean=[120.0, 115.0, 105.0], std=[60.0] * 3)
    backbone = dict(type="ResNetV1c", depth=18)
    cfg.model.update(type="EncoderDecoder", data_preprocessor=preparation, backbone=backbone)
    assert check(cfg).problems == []
    for dataset in datasets_of(cfg):
        dataset.pipeline[0].color_type = "unchanged"
    path = first(data, "train")
    with Image.open(path) as image:
        image.convert("L").save(path)
    assert check(cfg).problems == []  # the three means make three channels of the grey image
    cfg.model.data_preprocessor.update(mean=[110.0], std=[60.0])
    (problem,) = check(cfg).by_rule["channels"]
    assert (problem.file, "1 channel," in problem.what) == (str(path), True)
    cfg.model.backbone.in_channels = 4
    files = [p.file for p in check(cfg).by_rule["channels"]]
    assert len(files) == TRAIN + 3 - 2 and str(path) in files
    cfg.model.data_preprocessor.update(mean=[0.4], std=[0.2])
    cfg.model.backbone.in_channels = 3
    (problem,) = check(cfg).by_rule["values"]  # of the split whose channels fit
    assert problem.split == "val" and "mean=[" in problem.remedy


def test_images_of_two_sizes_in_a_batch(data: Path) -> None:
    """Of three images to validate on the last is smaller: it comes alone into a batch of two."""
    for folder, suffix in (("val", "jpg"), ("valannot", "png")):
        path = data / folder / f"2.{suffix}"
        with Image.open(path) as image:
            small = image.crop((0, 0, 80, 64))
        small.save(path)
    cfg = config(data)
    cfg.model.data_preprocessor = dict(type="SegDataPreProcessor", size=(64, 64))
    for size, found in ((1, False), (2, False), (3, True)):
        cfg.val_dataloader.batch_size = size
        problems = check(cfg).by_rule.get("mixed_sizes", [])
        assert [p.file for p in problems] == ["config key val_dataloader.batch_size"] * found
    cfg.val_dataloader.dataset.pipeline.insert(1, dict(type="Resize", scale=(64, 64)))
    assert "mixed_sizes" not in check(cfg).by_rule  # the pipeline makes them equal


def test_classes_that_do_not_occur(data: Path) -> None:
    relabel(data, {8: 0, 9: 0}, ("train",))
    relabel(data, {9: 0}, ("val",))
    set_pixel(first(data, "valannot"), 8)
    found = check(config(data)).by_rule
    assert [p.file for p in found["class_only_val"]] == ["class Car of CamVidDataset"]
    assert [p.file for p in found["class_never"]] == ["class Pedestrian of CamVidDataset"]


def test_custom_classes_are_mapped_as_in_training(clean: Path) -> None:
    """A subset of the classes: the others are ignored by the data set's own label map."""
    cfg = with_data(config(clean), metainfo={"classes": ["Road", "Sky"]})
    cfg.model.decode_head.num_classes = 2
    report = check(cfg)
    assert report.problems == []
    sky = sum(int((np.array(Image.open(f)) == 0).sum()) for f in (clean / "trainannot").iterdir())
    assert report.class_table()["train"]["pixels"][1] == sky
