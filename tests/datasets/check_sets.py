# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Small data sets in CamVid's layout, clean ones to plant a fault in, and their config."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmseg_resnest.datasets.check import (
    DataReport,
    Problem,
    check_data,
)

# Raw labels of the sets below: 0 is a class, 11 is void and ignored through a label map.
CLASSES = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree"]
CLASSES += ["SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"]
TRAIN, VAL = 6, 3


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine samples in CamVid's layout; every class occurs in train."""
    root = tmp_path_factory.mktemp("clean")
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir()
        for i in range(count):
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            image = cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)
            Image.fromarray(image).save(root / split / f"{i}.jpg", quality=95)
            labels = rng.integers(0, 12, (6, 8), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
            labels[0, :11] = np.arange(11)
            Image.fromarray(labels).save(root / f"{split}annot" / f"{i}.png")
    return root


@pytest.fixture
def data(tmp_path: Path, clean: Path) -> Path:
    """A copy to plant a fault in."""
    return Path(shutil.copytree(clean, tmp_path / "data"))


def config(root: Path) -> Config:
    """CamVid's layout with a head of 11 classes."""

    def loader(split: str) -> dict[str, Any]:
        steps = ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")
        dataset = dict(
            type="CamVidDataset",
            data_root=str(root),
            data_prefix=dict(img_path=split, seg_map_path=f"{split}annot"),
            pipeline=[dict(type=step) for step in steps],
        )
        return dict(batch_size=1, dataset=dataset)

    return Config(
        dict(
            default_scope="mmseg_resnest",
            train_dataloader=loader("train"),
            val_dataloader=loader("val"),
            val_evaluator=dict(type="SegmentationMetric"),
            model=dict(decode_head=dict(type="FCNHead", num_classes=11)),
        )
    )


def datasets_of(cfg: Config) -> list[Any]:
    return [cfg.train_dataloader.dataset, cfg.val_dataloader.dataset]


def with_data(cfg: Config, **options: Any) -> Config:
    """The config, whose two data sets have these options."""
    for dataset in datasets_of(cfg):
        dataset.update(options)
    return cfg


def check(cfg: Config, **options: Any) -> DataReport:
    return check_data(cfg, workers=1, progress=False, **options)


def relabel(root: Path, table: dict[int, int], folders: tuple[str, ...] = ("train", "val")) -> None:
    for folder in folders:
        for path in (root / f"{folder}annot").iterdir():
            labels = np.array(Image.open(path))
            changed = labels.copy()
            for old, new in table.items():
                changed[labels == old] = new
            Image.fromarray(changed).save(path)


def put_palettes(root: Path, palette: bytes) -> None:
    """Label maps with a palette, all of them."""
    for file in root.glob("*annot/*.png"):
        image = Image.open(file)
        image.load()
        image.putpalette(palette)
        image.save(file)


def set_pixel(path: Path, value: int) -> None:
    labels = np.array(Image.open(path))
    labels[-1, -1] = value
    Image.fromarray(labels).save(path)


def base_config(root: Path, classes: int = 11, **dataset: Any) -> Config:
    """The same files as a plain data set, without CamVid's label map."""
    metainfo = {"classes": CLASSES[:classes], "palette": [[i, i, i] for i in range(classes)]}
    cfg = with_data(config(root), type="BaseSegDataset", img_suffix=".jpg", metainfo=metainfo)
    with_data(cfg, **dataset)
    cfg.model.decode_head.num_classes = classes
    return cfg


def only(cfg: Config, rule: str, **options: Any) -> Problem:
    return check(cfg, **options).by_rule[rule][0]


def first(root: Path, folder: str, index: int = 1) -> Path:
    return sorted((root / folder).iterdir())[index]
