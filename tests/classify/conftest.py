# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A small made-up ImageNet, and commands that train on it in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
CLASSES = tuple(f"n{number:08d}" for number in range(6))
Tool = Callable[..., "subprocess.CompletedProcess[str]"]

#: The config of ResNeSt-14, a tiny network of its kind, six classes, small images, a short run.
CONFIG = f"""
_base_ = "{ROOT}/configs/classification/resnest14_imagenet.py"
small = dict(blocks=(1, 1, 1, 1), base_width=4, stem_width=4, _delete_=True)
model = dict(
    data_preprocessor=dict(num_classes=6),
    backbone=dict(arch=small, dropblock_prob=0.1),
    head=dict(num_classes=6, dropout=0.2),
)
train_pipeline = [
    *(_base_.load, _base_.augment, dict(_base_.train_crop, scale=32)),
    *(*_base_.after_crop, _base_.pack),
]
test_pipeline = [_base_.load, dict(_base_.test_crop, crop_size=32), _base_.pack]
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.01))
train_cfg = dict(max_iters=8, val_interval=8)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-12, begin=0, end=3, by_epoch=False),
    dict(type="CosineAnnealingLR", T_max=6, begin=2, end=8, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
"""


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of images, each about one colour: train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
    root = tmp_path_factory.mktemp("imagenet")
    random = np.random.RandomState(0)
    for split, number in (("train", 5), ("val", 2)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = random.randint(0, 60, (40, 48, 3)) + 30 * label
                file = root / split / name / f"{split}_{index}.JPEG"
                Image.fromarray(pixels.astype(np.uint8)).save(file)
    return root


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "small.py"
    file.write_text(CONFIG)
    return file


@pytest.fixture(scope="session")
def tool() -> Tool:
    """``mmseg-resnest`` with these arguments, in a process; keywords are of subprocess.run."""

    def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
        start = "from mmseg_resnest_cli import main; main()"
        command = [sys.executable, "-c", start, *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=500, **options
        )  # type: ignore[call-overload]

    return run
