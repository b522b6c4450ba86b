# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A data set of two classes, and configs in both of MMEngine's styles that train on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ground", "thing")


def write_images(
    root: Path, train: int = 12, val: int = 4, values: tuple[int, int] = (0, 1)
) -> Path:
    """Images of 80x64 with a bright rectangle, and label maps of the two values."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            thing = np.zeros((64, 80), bool)
            x, y = rng.integers(5, 45), rng.integers(5, 30)
            thing[y : y + 25, x : x + 25] = True
            image = rng.integers(0, 60, (64, 80, 3)) + 150 * thing[..., None]
            Image.fromarray(image.astype(np.uint8)).save(
                root / "images" / split / f"{split}{i}.png"
            )
            labels = np.where(thing, values[1], values[0]).astype(np.uint8)
            Image.fromarray(labels).save(root / "annotations" / split / f"{split}{i}.png")
    return root


SCHEDULE = """
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import OptimWrapper, PolyLR
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from torch.optim import SGD

optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01, momentum=0.9))
param_scheduler = [dict(type=PolyLR, power=0.9, begin=0, end=7, by_epoch=False)]
train_cfg = dict(type=IterBasedTrainLoop, max_iters=6, val_interval=3)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1, log_metric_by_epoch=False),
    checkpoint=dict(
        type=CheckpointHook, by_epoch=False, interval=3, save_best="mIoU", rule="greater"
    ),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
train_sampler = dict(type=InfiniteSampler, shuffle=True)
val_sampler = dict(type=DefaultSampler, shuffle=False)
"""

PYTHON_STYLE = """
import torch.nn as nn
from mmcv.transforms import LoadImageFromFile, RandomFlip
from mmengine.config import read_base

with read_base():
    from .parts.schedule import *

from mmengine.dataset import pseudo_collate
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, RandomCrop
from mmseg.models import EncoderDecoder, FCNHead, ResNetV1c, SegDataPreProcessor
from mmseg.models.losses import CrossEntropyLoss
from mmseg_resnest.datasets import CustomDataset
from mmseg_resnest.evaluation import SegmentationMetric
from mmseg_resnest.models import MultiScaleGridTTA
from not_installed import Unused

train_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations),
    dict(type=RandomCrop, crop_size=(64, 64)),
    dict(type=RandomFlip, prob=0.5),
    dict(type=PackSegInputs),
]
test_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations),
    dict(type=PackSegInputs),
]
tta_pipeline = test_pipeline


def part(split, pipeline):
    return dict(
        type=CustomDataset,
        data_root="data",
        data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}"),
        metainfo=dict(classes=("ground", "thing"), palette=[[0, 0, 0], [255, 0, 0]]),
        pipeline=pipeline,
    )


train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=train_sampler,
    collate_fn=dict(type=pseudo_collate),
    dataset=part("train", train_pipeline),
)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=val_sampler, dataset=part("val", test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(type=SegmentationMetric)
test_evaluator = val_evaluator
norm_cfg = dict(type=nn.BatchNorm2d, requires_grad=True)
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(64, 64),
    ),
    backbone=dict(
        type=ResNetV1c,
        depth=18,
        base_channels=4,
        stem_channels=4,
        strides=(1, 2, 2, 2),
        dilations=(1, 1, 1, 1),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        type=FCNHead,
        in_channels=32,
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes=2,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type=CrossEntropyLoss, avg_non_ignore=True),
    ),
    test_cfg=dict(mode="whole"),
)
tta_model = dict(
    type=MultiScaleGridTTA, scales=(0.5, 1.0), flip=True, base_size=96, crop_size=64
)
"""


def write_python_style(folder: Path) -> Path:
    """``mine.py``, which names classes and inherits with ``read_base()``; data in ``data``."""
    (folder / "parts").mkdir()
    (folder / "parts" / "schedule.py").write_text(SCHEDULE, encoding="utf-8")
    path = folder / "mine.py"
    path.write_text(PYTHON_STYLE, encoding="utf-8")
    return path
