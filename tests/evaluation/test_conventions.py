# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What docs/metrics.md states of each data set, computed from raw label files apart from us."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.evaluation import SegmentationMetric
from mmseg_resnest.registry import DATASETS, TRANSFORMS

CONFIGS = Path(__file__).parents[2] / "configs"

# Config, root of the data set, image and label file, raw value -> class (the rest is ignored).
SETS = {
    "ade20k": (
        "fcn_resnest50_ade20k.py",
        "ade20k/ADEChallengeData2016",
        "images/validation/{}.jpg",
        "annotations/validation/{}.png",
        {raw: raw - 1 for raw in range(1, 151)},
        [0],
    ),
    "voc": (
        "fcn_resnest50_voc12aug.py",
        "voc2012/VOCdevkit/VOC2012",
        "JPEGImages/{}.jpg",
        "SegmentationClass/{}.png",
        {raw: raw for raw in range(21)},
        [255],
    ),
    "pascal_context": (
        "fcn_resnest50_pascal_context.py",
        "pascal_context/VOCdevkit/VOC2010",
        "JPEGImages/{}.jpg",
        "SegmentationClassContext/{}.png",
        {raw: raw - 1 for raw in range(1, 60)},
        [0],
    ),
    "camvid": (
        "fcn_resnest14_camvid.py",
        "camvid",
        "val/{}.png",
        "valannot/{}.png",
        {raw: raw for raw in range(11)},
        [11],
    ),
    "cityscapes": (
        "fcn_resnest50_cityscapes.py",
        "cityscapes",
        "leftImg8bit/val/a/{}_leftImg8bit.png",
        "gtFine/val/a/{}_gtFine_labelTrainIds.png",
        {raw: raw for raw in range(19)},
        [255],
    ),
}


def official_scores(files, predictions, classes, number):
    """mIoU and pixAcc by the stated convention: plain loops over classes, raw values."""
    intersection, union = [0] * number, [0] * number
    correct = labelled = 0
    for file, pred in zip(files, predictions, strict=True):
        raw = np.array(Image.open(file)).astype(int)
        counted = np.isin(raw, list(classes))
        labelled += counted.sum()
        for value, k in classes.items():
            hit = ((raw == value) & (pred == k)).sum()
            intersection[k] += hit
            union[k] += (counted & ((raw == value) | (pred == k))).sum()
            correct += hit
    scored = [i / u for i, u in zip(intersection, union, strict=True) if u]
    return 100 * sum(scored) / len(scored), 100 * correct / labelled


@pytest.mark.parametrize("name", SETS)
def test_scores_follow_the_stated_convention(name, tmp_path):
    config, folder, image, label, classes, ignored = SETS[name]
    root = tmp_path / folder
    dice = np.random.default_rng(1)
    names, files = ["one", "two", "three"], []
    for stem in names:
        picture, mask = root / image.format(stem), root / label.format(stem)
        for path in (picture, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        raw = dice.choice([*classes, *ignored], (40, 50)).astype(np.uint8)
        raw[:10] = ignored[0]
        Image.new("RGB", (50, 40)).save(picture)
        Image.fromarray(raw).save(mask)
        files.append(mask)
    cfg = load_config(CONFIGS / config, data_root=tmp_path)
    dataset_cfg = cfg.val_dataloader.dataset
    if dataset_cfg.get("ann_file"):
        listed = root / dataset_cfg.ann_file
        listed.parent.mkdir(parents=True)
        listed.write_text("\n".join(names), encoding="utf-8")
    steps = [s for s in dataset_cfg.pipeline if s["type"].startswith("Load")]
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        dataset = DATASETS.build({**dataset_cfg, "pipeline": []})
        loaders = [TRANSFORMS.build(step) for step in steps]
    assert len(dataset.metainfo["classes"]) == len(classes)

    metric = SegmentationMetric(
        **{k: v for k, v in cfg.val_evaluator.items() if k not in ("type", "_scope_")}
    )
    metric.dataset_meta = dataset.metainfo
    predictions = {}
    for i in range(len(dataset)):
        results = dataset.get_data_info(i)
        for load in loaders:
            results = load(results)
        pred = dice.integers(0, len(classes), (40, 50))
        raw = np.array(Image.open(results["seg_map_path"])).astype(int)
        for value, k in classes.items():  # half of it right
            pred[(raw == value) & (dice.random((40, 50)) < 0.5)] = k
        predictions[Path(results["seg_map_path"])] = pred
        sample = {
            "img_path": results["img_path"],
            "pred_sem_seg": {"data": torch.as_tensor(pred)},
            "gt_sem_seg": {"data": torch.as_tensor(results["gt_seg_map"])},
        }
        metric.process(None, [sample])
    got = metric.evaluate(3)
    miou, accuracy = official_scores(files, [predictions[f] for f in files], classes, len(classes))
    assert got["mIoU"] == pytest.approx(miou, rel=1e-13)
    assert got["pixAcc"] == pytest.approx(accuracy, rel=1e-13)
