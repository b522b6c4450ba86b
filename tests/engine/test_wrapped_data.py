# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Mosaics of balanced images: training, resuming, looking at them, checking and measuring them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from small_runs import losses, run, small_config

from mmseg_resnest.datasets import check_start, inside, leaf_datasets
from mmseg_resnest.datasets.check import check_data
from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.benchmark import default_shape
from mmseg_resnest.engine.browse import browse, draw_sample
from mmseg_resnest.engine.config.check import check_config
from mmseg_resnest.registry import DATASETS

OUTER = [
    dict(type="RandomMosaic", prob=0.7, img_scale=(64, 64)),
    dict(type="RandomResize", scale=(128, 128), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(64, 64), cat_max_ratio=0.9),
    dict(type="PackSegInputs"),
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 12, 2, progress=False)


def mosaics(scenes: Path, **options: object) -> Config:
    cfg = small_config(scenes, **options)
    loader = cfg.train_dataloader
    half = loader.dataset
    half.pipeline = [step for step in half.pipeline if step.type.startswith(("Load", "RandomFlip"))]
    other = ConfigDict(type="RepeatDataset", times=2, dataset=half)
    both = ConfigDict(type="ConcatDataset", datasets=[half, other])
    balanced = ConfigDict(type="ClassBalancedDataset", dataset=both, oversample_thr=0.4)
    loader.dataset = ConfigDict(type="MultiImageMixDataset", dataset=balanced, pipeline=OUTER)
    check_config(cfg)
    return cfg


@pytest.mark.long
def test_training_resumes_exactly_with_any_number_of_workers(scenes: Path, tmp_path: Path) -> None:
    run(mosaics(scenes), tmp_path / "whole", seed=3)
    whole = losses(tmp_path / "whole" / "iter_6.pth")
    cfg = mosaics(scenes, train_dataloader__num_workers=2)
    run(cfg, tmp_path / "again", seed=3)
    assert losses(tmp_path / "again" / "iter_6.pth") == whole
    for name in ("iter_6.pth", "last_checkpoint"):
        (tmp_path / "again" / name).unlink()
    run(mosaics(scenes), tmp_path / "again", resume="auto")
    assert losses(tmp_path / "again" / "iter_6.pth") == whole
    assert len(list(scenes.glob(".mmseg_classes*"))) == 1


def test_what_is_shown_is_what_training_gets(scenes: Path, tmp_path: Path) -> None:
    cfg = mosaics(scenes)
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    names = set()
    for seed in range(6):
        steps = draw_sample(dataset, seed * 5, seed)
        random.seed(seed)
        np.random.seed(seed)
        sample = dataset[seed * 5]
        assert np.array_equal(steps[-1].image[:, :, ::-1], sample["inputs"].permute(1, 2, 0))
        labels = sample["data_samples"].gt_sem_seg.data[0].numpy()
        assert np.array_equal(steps[-1].labels, labels)
        names |= {step.name for step in steps}
    assert {"LoadImageFromFile", "RandomMosaic", "RandomCrop"} <= names
    made = dataset.dataset  # of balanced images
    leaf, place = inside(made, len(made) - 1)
    assert leaf.get_data_info(place)["img_path"] == made.get_data_info(len(made) - 1)["img_path"]
    done = browse(cfg, tmp_path, images=30, draws=1)
    assert done["images"] == len(list(tmp_path.iterdir())) == 12  # each image once
    skipping = ConfigDict(cfg.train_dataloader.dataset, skip_type_keys=["RandomMosaic"])
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        dataset = DATASETS.build(skipping)
    assert "RandomMosaic" not in {step.name for step in draw_sample(dataset, 0, 0)}
    cfg.train_dataloader.dataset = cfg.train_dataloader.dataset.dataset
    assert browse(cfg, tmp_path / "balanced", images=30, draws=1)["images"] == 12


def test_the_other_tools(scenes: Path) -> None:
    cfg = mosaics(scenes)
    assert default_shape(cfg) == (64, 64)
    assert len(list(leaf_datasets(cfg.train_dataloader.dataset))) == 2
    check_start(cfg, splits=("train",))
    report = check_data(cfg, splits=("train",), workers=1, progress=False)
    assert not [p for p in report.problems if p.severity == "error"]
