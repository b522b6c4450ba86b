# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Sheets of augmented images: what they show is what training gets."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.browse import browse, draw_sample
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.registry import DATASETS

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "fcn_resnest14_scenes.py"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 3, 2, progress=False)


@pytest.fixture
def cfg(scenes: Path) -> Config:
    return load_config(CONFIG, data_root=scenes.parent)


def test_what_is_shown_is_what_training_gets(cfg: Config) -> None:
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        dataset: Any = DATASETS.build(cfg.train_dataloader.dataset)
    mirrored = 0
    for seed in range(6):
        steps = draw_sample(dataset, 1, seed)
        random.seed(seed)
        np.random.seed(seed)
        sample = dataset[1]
        assert np.array_equal(steps[-1].image[:, :, ::-1], sample["inputs"].permute(1, 2, 0))
        labels = sample["data_samples"].gt_sem_seg.data[0].numpy()
        assert np.array_equal(steps[-1].labels, labels)
        mirrored += "mirrored" in steps[-1].text
        assert [s.name for s in steps] == ["LoadImageFromFile", "RandomFlip", "RandomCrop"]
    path = dataset.get_data_info(1)["img_path"]
    assert np.array_equal(steps[0].image, np.asarray(Image.open(path)))
    assert steps[0].text == "160 x 128"
    assert 0 < mirrored < 6


def test_sheets(cfg: Config, tmp_path: Path) -> None:
    done = browse(cfg, tmp_path / "a", images=2, draws=3)
    assert done["images"] == 2
    browse(cfg, tmp_path / "b", images=2, draws=3)
    browse(cfg, tmp_path / "c", images=1, draws=2, seed=1)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(names) == 2
    assert [(tmp_path / "a" / n).read_bytes() for n in names] == [
        (tmp_path / "b" / n).read_bytes() for n in names
    ]
    assert (tmp_path / "a" / names[0]).read_bytes() != (tmp_path / "c" / names[0]).read_bytes()
    browse(cfg, tmp_path / "d", split="val", images=9, draws=1, steps=True, shuffle=True)
    assert len(list((tmp_path / "d").iterdir())) == 2
    with Image.open(tmp_path / "a" / names[0]) as sheet:
        # As it is and a draw beside each other, each with its labels.
        assert sheet.width == 2 * 16 + 4 * 288 + 3 * 12


def test_mistakes(cfg: Config, tmp_path: Path) -> None:
    with raises_user_error("argument", "--images"):
        browse(cfg, tmp_path, images=0)
    with raises_user_error("argument", "--opacity"):
        browse(cfg, tmp_path, opacity=2)
    (tmp_path / "file").touch()
    with raises_user_error("not-writable", "--out"):
        browse(cfg, tmp_path / "file")
    cfg.train_dataloader.dataset.pipeline = [dict(type="PackSegInputs")]
    with raises_user_error("config-value", "pipeline"):
        browse(cfg, tmp_path)


def test_bands_that_are_shown(cfg: Config, scenes: Path, tmp_path: Path) -> None:
    with raises_user_error("argument", "--bands"):
        browse(cfg, tmp_path / "none", images=1, bands=[1, 2, 3])
    folder = tmp_path / "images"
    folder.mkdir()
    bands = np.random.default_rng(0).integers(0, 255, (40, 50, 5)).astype(np.float32)
    np.save(folder / "a.npy", bands)
    Image.new("L", (50, 40)).save(folder / "a.png")
    steps = [dict(type=name) for name in ("LoadBands", "LoadAnnotations", "PackSegInputs")]
    cfg.train_dataloader.dataset = dict(
        type="CustomDataset", img_suffix=".npy", data_root=str(folder),
        metainfo=dict(classes=["a", "b"], palette=[[0, 0, 0], [9, 9, 9]]), pipeline=steps,
    )  # fmt: skip
    sheets = []
    for shown in (None, [1, 2, 3], [5, 1, 4]):
        out = tmp_path / str(shown)
        assert browse(cfg, out, images=1, draws=1, opacity=0, bands=shown)["images"] == 1
        sheets.append((out / "a.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
    assert "picture" not in cfg.train_dataloader.dataset.pipeline[0]
    with raises_user_error("image"):
        browse(cfg, tmp_path / "six", images=1, bands=[1, 2, 6])
