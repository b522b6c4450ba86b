# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Classes that overlap, from LabelMe, COCO and one mask a class: bit planes and a config."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from advice import advises
from custom_sets import build, custom, label_map, write_labelme, write_masks
from mmengine.registry import DefaultScope
from tiny_archives import encoded, jpeg, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare import CustomOptions, recognise_options
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.launch import Machine
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.engine.resolve import TrainingOptions, resolve
from mmseg_resnest.registry import DATASETS

#: Of images of 8x6: name, x, y, right, bottom.
AREAS = [("big", 0, 0, 6, 6), ("small", 2, 2, 4, 4), ("void", 5, 0, 8, 2), ("big", 1, 1, 3, 3)]


def expected(order: tuple[str, ...] = ("big", "small")) -> np.ndarray:
    bits = np.zeros((6, 8), np.uint8)
    for name, left, top, right, bottom in AREAS:
        value = 255 if name == "void" else 1 << order.index(name)
        bits[top:bottom, left:right] |= value
    return bits


def _corners(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def labelme(folder: Path) -> dict[str, Any]:
    shapes = [dict(label=name, points=_corners(*box)) for name, *box in AREAS]
    return write_labelme(folder, ["big"], shapes=shapes)


def coco(folder: Path) -> dict[str, Any]:
    names = ["small", "big", "void"]
    annotations = [
        dict(
            id=n, image_id=1, category_id=names.index(name),
            segmentation=[np.ravel(_corners(*box)).tolist()],
        )
        for n, (name, *box) in enumerate(AREAS)
    ]  # fmt: skip
    images = [dict(id=i, file_name=f"{n}.jpg", height=6, width=8) for i, n in ((1, "x"), (2, "y"))]
    categories = [dict(id=i, name=name) for i, name in enumerate(names)]
    data = dict(images=images, annotations=annotations, categories=categories)
    files = {"all.json": json.dumps(data).encode(), "x.jpg": jpeg(0), "y.jpg": jpeg(1)}
    write_folder(folder / "coco", files)
    return dict(form="coco", sources=(folder / "coco" / "all.json",))


def class_masks(folder: Path, by_image: bool = False) -> dict[str, Any]:
    write_folder(folder / "images", {"x.jpg": jpeg(0), "y.jpg": jpeg(1)})
    for name in ("big", "small", "void"):
        mask = np.zeros((6, 8), np.uint8)
        for other, left, top, right, bottom in AREAS:
            if other == name:
                mask[top:bottom, left:right] = 255
        place = f"x/{name}.png" if by_image else f"{name}/x.png"
        write_folder(folder / "masks", {place: encoded(mask, "PNG")})
    return dict(form="masks", sources=(folder / "masks",), images=folder / "images")


def test_the_form_of_one_mask_a_class_is_told(tmp_path: Path) -> None:
    masks = {**class_masks(tmp_path), "form": "auto"}
    options = CustomOptions("mine", multilabel=True, val_fraction=0.5, **masks)
    filled, _ = recognise_options(options, tmp_path, 1)
    assert filled == replace(options, form="masks")
    (tmp_path / "masks/x.JSON").write_text("{}")
    assert recognise_options(options, tmp_path, 1)[0] == filled
    with raises_user_error("wrong-path-type", "x.JSON"):
        recognise_options(replace(options, sources=(tmp_path / "masks/x.JSON",)), tmp_path, 1)


FORMS = dict(
    labelme=labelme, coco=coco, masks=class_masks, folders=lambda f: class_masks(f, by_image=True)
)


@pytest.mark.parametrize("form", FORMS)
def test_overlapping_areas_are_kept(tmp_path: Path, form: str) -> None:
    options = FORMS[form](tmp_path)
    report = custom(tmp_path, multilabel=True, ignore=("void",), val_fraction=0.5, **options)
    found = label_map(tmp_path, "x")
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected())
    if form != "labelme":  # nothing is drawn on the other
        assert not label_map(tmp_path, "y").any()
    pixels = {name: train + val for name, _, train, val in report.classes}
    known = expected() != 255
    own = (expected() >> 1 & 1)[known].sum()
    assert pixels["small"] == own
    again = custom(tmp_path, multilabel=True, ignore=("void",), val_fraction=0.5, **options)
    assert again.unchanged


def test_the_config_is_whole(tmp_path: Path) -> None:
    report = custom(tmp_path, multilabel=True, ignore=("void",), val_fraction=0.5, **coco(tmp_path))
    cfg = load_config(report.config)
    resolved = resolve(cfg, TrainingOptions(work_dir="work"), Machine.here("none")).cfg
    assert resolved.val_evaluator.type == "MultilabelMetric"
    arch = dict(blocks=(1, 1, 1, 1), radix=2, groups=1, base_width=4, stem_width=4, avd_first=False)
    cfg.model.backbone.arch = arch
    model: Any = build_model(cfg)
    assert model.multilabel
    assert model.decode_head.num_classes == model.auxiliary_head.num_classes == 2
    for split in ("train", "val"):
        sample = build(cfg, split)[0]
        labels = sample["data_samples"].gt_sem_seg.data
        assert labels.shape == (2, *sample["inputs"].shape[1:])
    names = [type(loss).__name__ for loss in model.decode_head.loss_decode]
    assert names == ["CrossEntropyLoss", "DiceLoss"]
    assert cfg.tta_model.type == "SegTTAModel"


def test_test_time_augmentation_prepares_as_the_test_does(tmp_path: Path) -> None:
    options = dict(multilabel=True, ignore=("void",), val_fraction=0.5, **coco(tmp_path))
    cfg = load_config(custom(tmp_path, inherits="fcn_resnest14_camvid", **options).config)
    kinds = [steps[0].type for steps in cfg.tta_pipeline[1].transforms]
    assert kinds == ["RandomFlip", "Resize", "LoadMultilabel", "PackSegInputs"]
    assert cfg.tta_pipeline[1].transforms[1] == [cfg.test_pipeline[1]]
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        dataset = DATASETS.build({**cfg.val_dataloader.dataset, "pipeline": cfg.tta_pipeline})
    views = dataset[0]["data_samples"]
    assert [view.flip for view in views] == [False, True]
    assert views[0].gt_sem_seg.data.shape[0] == 2


def test_images_of_bands(tmp_path: Path) -> None:
    """Overlap and bands in one config; ignored pixels count in no mean."""
    options = class_masks(tmp_path)
    (tmp_path / "images/x.jpg").unlink()
    (tmp_path / "images/y.jpg").unlink()
    random = np.random.default_rng(0)
    images = {name: random.integers(1, 5000, (6, 8, 5)).astype(np.uint16) for name in "xy"}
    for name, image in images.items():
        np.save(tmp_path / f"images/{name}.npy", image)
    (tmp_path / "val.txt").write_text("y\n")
    report = custom(
        tmp_path, inherits="fcn_resnest14_camvid", multilabel=True, ignore=("void",),
        val_list=tmp_path / "val.txt", **options,
    )  # fmt: skip
    cfg = load_config(report.config)
    known = images["x"][expected() != 255].astype(np.float64)
    np.testing.assert_allclose(cfg.model.data_preprocessor.mean, known.mean(0), rtol=1e-5)
    np.testing.assert_allclose(cfg.model.data_preprocessor.std, known.std(0), rtol=1e-5)
    assert (cfg.model.multilabel, cfg.model.backbone.in_channels) == (True, 5)
    for split in ("train", "val"):
        sample = build(cfg, split)[0]
        labels = sample["data_samples"].gt_sem_seg.data
        assert (len(sample["inputs"]), len(labels)) == (5, 2)
    assert cfg.tta_pipeline[0] == cfg.test_pipeline[0] == cfg.load_bands


def test_16_bits_for_many_classes(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", {"x.jpg": jpeg(0), "y.jpg": jpeg(1)})
    for c in range(9):
        mask = np.zeros((6, 8), np.uint8)
        mask[:, : c % 8] = 1
        write_folder(tmp_path / "masks", {f"c{c}/x.png": encoded(mask, "PNG")})
    options = dict(form="masks", sources=(tmp_path / "masks",), images=tmp_path / "images")
    custom(tmp_path, multilabel=True, ignore=("c1",), val_fraction=0.5, **options)
    found = label_map(tmp_path, "x")
    assert found.dtype == np.uint16
    assert found[0, 0] == 65535  # that of the class left out
    assert found[0, 1] == 0b01111110
    assert found[0, 6] == 0b01000000


def test_what_does_not_go_with_overlap(tmp_path: Path) -> None:
    options = coco(tmp_path)
    masks = class_masks(tmp_path)
    with advises("datasets/prepare/planes.py:check_overlap", "give --multilabel"):
        custom(tmp_path, **masks)
    with advises("datasets/prepare/planes.py:read_class_masks", "give the folder of images"):
        custom(tmp_path, multilabel=True, **dict(masks, images=None))
    shutil.move(tmp_path / "masks/big/x.png", tmp_path / "masks/x.png")
    with advises("datasets/prepare/planes.py:read_class_masks", "put it in CLASS/NAME.png"):
        custom(tmp_path, multilabel=True, **masks)
    shutil.move(tmp_path / "masks/x.png", tmp_path / "masks/big/x.png")
    with advises("datasets/prepare/custom.py:class_list", "see --ignore"):
        custom(tmp_path, multilabel=True, ignore=("big", "small", "void"), **masks)
    custom(tmp_path, multilabel=True, ignore=("void",), val_fraction=0.5, **masks)
    for more in (dict(background="rest"), dict(label_map={"big": "small"})):
        with advises("datasets/prepare/planes.py:check_overlap", "leave it out with --multilabel"):
            custom(tmp_path, multilabel=True, **more, **options)
    with advises("datasets/prepare/planes.py:check_overlap", "--multilabel takes"):
        custom(tmp_path, multilabel=True, **write_masks(tmp_path / "index", ["a", "b"]))
    custom(tmp_path / "coco", multilabel=True, **options)
    masks = class_masks(tmp_path)
    write_folder(tmp_path / "masks", {"big/z.png": encoded(np.zeros((6, 8), np.uint8), "PNG")})
    with raises_user_error("dataset", "z.png"):
        custom(tmp_path, multilabel=True, **masks)
