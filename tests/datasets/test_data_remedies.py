# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of data sets and transforms tell people to do is done, and then it works."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from advice import advises, helps
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image

from mmseg_resnest.datasets import CustomDataset
from mmseg_resnest.datasets.check.parts import build_part
from mmseg_resnest.datasets.class_names import check_class_name, read_classes, read_classes_of
from mmseg_resnest.datasets.label_map import merge_classes
from mmseg_resnest.datasets.layout import require_folder
from mmseg_resnest.datasets.pipelines import with_loading
from mmseg_resnest.datasets.reader import ImageReader
from mmseg_resnest.datasets.wrappers import ConcatDataset
from mmseg_resnest.engine.multilabel import check_overlap
from mmseg_resnest.registry import DATASETS, TRANSFORMS

PACKED = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, (6, 8), np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images with label maps."""
    for name in ("a", "b", "c"):
        for folder, pixels in (("images", PICTURE), ("labels", LABELS)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def custom(root: Path, **options: Any) -> CustomDataset:
    settings: dict[str, Any] = dict(
        data_root=str(root), pipeline=PACKED, metainfo=dict(classes=("x", "y", "z")),
        data_prefix=dict(img_path="images", seg_map_path="labels"), lazy_init=False,
    )  # fmt: skip
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        return CustomDataset(**settings | options)


# --- classes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right"), [(7, "7"), (" ", "sky"), ("x" * 201, "x"), ("a\0", "a"), ("\ud800", "a")]
)
def test_names_of_classes(name: object, right: str) -> None:
    with advises("datasets/class_names.py:check_class_name"):
        check_class_name(name, "here")
    assert check_class_name(right, "here") == right


def test_classes_files(tmp_path: Path) -> None:
    rows = [dict(name="a", color=[0, 0, 0]), dict(name="b", color=[1, 1, 1])]
    file, kept = tmp_path / "classes.json", tmp_path / "kept.json"
    kept.write_text(json.dumps(rows))
    helps("datasets/class_names.py:read_classes", "copy it there", "classes_file",
          call=lambda: read_classes(file), remedy=lambda: shutil.copy(kept, file))  # fmt: skip
    file.unlink()
    assert read_classes_of("kept.json", tmp_path, None)  # classes_file is set
    file.write_text(json.dumps([rows[0], rows[0]]))
    helps("datasets/class_names.py:read_classes", "rename",
          call=lambda: read_classes(file), remedy=lambda: file.write_text(json.dumps(rows)),
    )  # fmt: skip
    with advises("datasets/class_names.py:read_classes_of", "classes_file=None"):
        read_classes_of(file, None, dict(classes=("a", "b")))
    read_classes_of(None, None, dict(classes=("a", "b")))
    read_classes_of(file, None, dict())


def test_a_data_set_without_class_names(data: Path) -> None:
    def part(**options: Any) -> Any:
        cfg = dict(type="CustomDataset", data_root=str(data), pipeline=PACKED, **options)
        cfg["data_prefix"] = dict(img_path="images")
        return build_part(dict(train_dataloader=dict(dataset=cfg)), cfg, "train")

    with advises("datasets/check/parts.py:build_part", "metainfo=dict(classes=(...))"):
        part()
    part(metainfo=dict(classes=("x", "y")))
    (data / "classes.json").write_text('[{"name": "a", "color": [0, 0, 0]}]')
    part(classes_file="classes.json")


def test_data_sets_with_other_classes(data: Path) -> None:
    one, other = custom(data), custom(data, metainfo=dict(classes=("x", "y", "u")))
    with advises("datasets/wrappers.py:__init__", "make them equal", "ignore_keys=[") as told:
        ConcatDataset([one, other])
    assert told.value.code == "classes"
    assert len(ConcatDataset([one, other], ignore_keys=["classes"])) == 6
    assert len(ConcatDataset([one, custom(data)])) == 6


# --- files ----------------------------------------------------------------------------------


def test_files_without_a_partner(data: Path) -> None:
    stray, image = data / "labels/d.png", data / "images/d.png"
    Image.fromarray(LABELS).save(stray)
    with advises("datasets/custom.py:load_data_list", "add it", "remove this file"):
        custom(data)
    Image.fromarray(PICTURE).save(image)
    assert len(custom(data)) == 4
    image.unlink()
    stray.unlink()
    assert len(custom(data)) == 3
    again = data / "images/a.jpg"
    Image.fromarray(PICTURE).save(again)
    helps("datasets/custom.py:list_samples", "remove",
          call=lambda: custom(data), remedy=again.unlink)  # fmt: skip


def test_folders_without_permission(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data / "images"
    folder.chmod(0)
    # No permission counts for the superuser.
    monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o500))
    helps("datasets/layout.py:require_folder", "check its permissions",
          call=lambda: require_folder(folder, "mine"), remedy=lambda: folder.chmod(0o700),
    )  # fmt: skip


# --- readers --------------------------------------------------------------------------------


def test_pipelines_that_differ() -> None:
    grey = [dict(type="LoadImageFromFile", color_type="grayscale"), *PACKED[1:]]
    one, other = (dict(type="CustomDataset", pipeline=steps) for steps in (PACKED, grey))
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        with advises("datasets/reader.py:of", "give all of them one"):
            ImageReader.of(dict(type="ConcatDataset", datasets=[one, other]), "test")
        more = dict(type="ConcatDataset", datasets=[one, {**one, "img_suffix": ".ppm"}])
        assert ".ppm" in ImageReader.of(more, "test").suffixes
    with advises("datasets/pipelines.py:with_loading", "use its loader"):
        with_loading(grey, [dict(type="LoadImageFromNDArray"), *PACKED[1:]], "tta_pipeline")
    with_loading(grey, grey, "tta_pipeline")


def test_images_of_other_values() -> None:
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        reader = ImageReader.of(dict(type="CustomDataset", pipeline=PACKED), "test")
    tensor = torch.rand(3, 6, 8)
    with advises("datasets/reader.py:batch", "do not normalise"):
        reader.batch(2 * tensor - 1)
    reader.batch(tensor)
    deep = Image.fromarray(LABELS.astype(np.int32))
    with advises("datasets/reader.py:_from_pil", "RGB", "L"):
        reader.read(deep)
    assert reader.read(deep.convert("RGB")) and reader.read(deep.convert("L"))


# --- transforms ------------------------------------------------------------------------------


def apply(image: np.ndarray, *steps: dict[str, Any], labels: np.ndarray = LABELS) -> dict:
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        results = dict(
            img=image.copy(), gt_seg_map=labels.copy(), seg_fields=["gt_seg_map"],
            img_shape=image.shape[:2],
        )  # fmt: skip
        return Compose([TRANSFORMS.build(step) for step in steps])(results)


def test_values_and_channels_of_images(tmp_path: Path) -> None:
    deep, grey = PICTURE.astype(np.uint16) << 8, PICTURE[:, :, 0]
    clahe = dict(type="CLAHE")
    with advises("datasets/transforms/colour.py:require_bytes", "remove this step", "8-bit"):
        apply(deep, clahe)
    apply(deep)  # without the step
    Image.fromarray(grey.astype(np.uint16) << 8).save(tmp_path / "a.png")
    load = dict(type="LoadImageFromFile", to_float32=True, color_type="unchanged")

    def loaded(**options: Any) -> dict:
        with DefaultScope.overwrite_default_scope("mmseg_resnest"):
            steps = [TRANSFORMS.build(step) for step in (options, clahe)]
            return Compose(steps)(dict(img_path=str(tmp_path / "a.png")))

    with advises("datasets/transforms/colour.py:require_bytes", "load 8-bit images"):
        loaded(**load)
    loaded(type="LoadImageFromFile")
    two = PICTURE[:, :, :2]
    with advises("datasets/transforms/colour.py:require_bytes", "channels", "remove this step"):
        apply(two, dict(type="PhotoMetricDistortion"))
    apply(two)
    with advises("datasets/transforms/colour.py:transform", "give one for each"):
        apply(two, dict(type="RGB2Gray", weights=(0.3, 0.3, 0.4), out_channels=None))
    apply(two, dict(type="RGB2Gray", weights=(0.5, 0.5), out_channels=None))


def test_transforms_of_albumentations() -> None:
    pytest.importorskip("albumentations")
    flip = [dict(type="HorizontalFlip", p=1.0)]
    with advises("datasets/transforms/albu.py:transform", "bgr_to_rgb=False"):
        apply(PICTURE[:, :, :1], dict(type="Albu", transforms=flip))
    apply(PICTURE[:, :, :1], dict(type="Albu", transforms=flip, bgr_to_rgb=False))
    turn = dict(type="Rotate", limit=(40, 41), p=1.0)
    with advises("datasets/transforms/albu.py:albu_builder", "leave it out"):
        apply(PICTURE, dict(type="Albu", transforms=[dict(turn, mask_interpolation=1)]))
    apply(PICTURE, dict(type="Albu", transforms=[turn]))
    with advises("datasets/transforms/albu.py:transform", "what it fills"):
        apply(PICTURE, dict(type="Albu", transforms=[dict(turn, fill_mask=7)]))
    apply(PICTURE, dict(type="Albu", transforms=[dict(turn, fill_mask=255)]))


def test_samples_of_a_mosaic(data: Path) -> None:
    def mosaic(inner: list[dict], outer: list[dict]) -> Any:
        wrapper = dict(
            type="MultiImageMixDataset",
            dataset=dict(
                type="CustomDataset", data_root=str(data), pipeline=inner,
                metainfo=dict(classes=("x", "y", "z")),
                data_prefix=dict(img_path="images", seg_map_path="labels"),
            ),
            pipeline=[dict(type="RandomMosaic", prob=1.0, img_scale=(16, 16)), *outer],
        )  # fmt: skip
        with DefaultScope.overwrite_default_scope("mmseg_resnest"):
            return DATASETS.build(wrapper)[0]

    load, labels, pack = PACKED
    with advises("datasets/transforms/geometry.py:_flat", "MultiImageMixDataset"):
        mosaic([load, labels, pack], [])
    assert mosaic([load, labels], [pack])


# --- maps of labels, classes that overlap -----------------------------------------------------


def test_maps_of_labels(data: Path) -> None:
    with advises("datasets/label_map.py:merge_classes", "metainfo=dict(classes=...)"):
        merge_classes({0: "a"}, ())
    merge_classes({0: "a"}, ("a", "b"))
    with advises("datasets/label_map.py:merge_classes", "map one label at least"):
        merge_classes({"a": "ignore"}, ("a",))
    merge_classes({"a": "ignore"}, ("a", "b"))


def test_loaders_and_metrics_of_classes_that_overlap() -> None:
    def check(loader: str, metric: str, multilabel: bool) -> None:
        steps = [PACKED[0], dict(type=loader), PACKED[2]]
        dataset = dict(type="CustomDataset", pipeline=steps)
        check_overlap(
            dict(
                model=dict(type="EncoderDecoder", multilabel=multilabel),
                train_dataloader=dict(dataset=dataset), val_evaluator=dict(type=metric),
            )
        )  # fmt: skip

    with advises("engine/multilabel.py:check_overlap", "load bit planes by"):
        check("LoadAnnotations", "MultilabelMetric", True)
    with advises("engine/multilabel.py:check_overlap", "use LoadAnnotations"):
        check("LoadMultilabel", "SegmentationMetric", False)
    with advises("engine/multilabel.py:check_overlap", "True: use "):
        check("LoadMultilabel", "SegmentationMetric", True)
    with advises("engine/multilabel.py:check_overlap", "or use SegmentationMetric"):
        check("LoadAnnotations", "MultilabelMetric", False)
    check("LoadMultilabel", "MultilabelMetric", True)
    check("LoadAnnotations", "SegmentationMetric", False)
