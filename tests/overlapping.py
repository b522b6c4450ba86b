# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images of a disc and a square that overlap, as one class or as two that overlap; tiny configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 48, 64
ONE = ("rest", "disc")
SEVERAL = ("disc", "square", "frame")
ARCH = dict(blocks=(1, 1, 1, 1), radix=2, groups=1, base_width=4, stem_width=4, avd_first=False)


def shapes(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An image (H, W, 3), and where its disc, its square and the frame around it are, (3, H, W)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    top, left = rng.integers(12, 34), rng.integers(14, 46)
    disc = (y - top) ** 2 + (x - left) ** 2 <= 100
    square = (abs(y - top - 6) <= 9) & (abs(x - left - 8) <= 9)
    frame = (y < 4) | (y >= HEIGHT - 4) | (x < 4) | (x >= WIDTH - 4)
    masks = np.stack([disc, square, frame])
    image = rng.integers(0, 60, (HEIGHT, WIDTH, 3)) + 150 * np.moveaxis(masks, 0, 2)
    return image.astype(np.uint8), masks


def bits(masks: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Bit c of a pixel says whether it is of class c."""
    kind = np.uint8 if len(masks) < 8 else np.uint16
    return sum(mask.astype(kind) << c for c, mask in enumerate(masks)).astype(kind)


def write_shapes(root: Path, several: bool, train: int = 8, val: int = 3) -> Path:
    """``images`` and ``annotations`` with the splits ``train`` and ``val``."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image, masks = shapes(rng)
            labels = bits(masks) if several else masks[0].astype(np.uint8)
            if several:
                labels[10:14, 20:30] = 255
            name = f"{split}{i}.png"
            Image.fromarray(image).save(root / "images" / split / name)
            Image.fromarray(labels).save(root / "annotations" / split / name)
    return root


def shapes_config(root: Path, several: bool, iterations: int = 6) -> Config:
    """A tiny ResNeSt that learns one class with a sigmoid, or classes that overlap."""
    classes = SEVERAL if several else ONE
    load: dict[str, Any] = dict(type="LoadAnnotations")
    if several:
        load = dict(type="LoadMultilabel", num_classes=len(classes))
    train = [
        dict(type="LoadImageFromFile"), load,
        dict(type="RandomResize", scale=(64, 48), ratio_range=(0.8, 1.4), keep_ratio=True),
        dict(type="RandomCrop", crop_size=(48, 64), cat_max_ratio=0.95),
        dict(type="RandomFlip", prob=0.5), dict(type="PackSegInputs"),
    ]  # fmt: skip
    test = [dict(type="LoadImageFromFile"), load, dict(type="PackSegInputs")]

    def loader(split: str, size: int, steps: list[Any], sampler: str) -> dict[str, Any]:
        dataset = dict(
            type="CustomDataset", data_root=str(root), pipeline=steps,
            data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}"),
            metainfo=dict(classes=classes, palette=[[40, 40, 40], [220, 30, 60], [30, 90, 220]][
                : len(classes)]),
        )  # fmt: skip
        sampled = dict(type=sampler, shuffle=split == "train")
        return dict(batch_size=size, num_workers=0, sampler=sampled, dataset=dataset)

    losses: Any = dict(type="CrossEntropyLoss", use_sigmoid=True, avg_non_ignore=True)
    head: dict[str, Any] = dict(num_classes=2, out_channels=1, threshold=0.4, loss_decode=losses)
    if several:
        losses = [losses, dict(type="DiceLoss"), dict(type="FocalLoss", loss_weight=2.0)]
        head = dict(num_classes=3, loss_decode=losses)
    evaluator = dict(type="MultilabelMetric" if several else "SegmentationMetric")
    val = loader("val", 1, test, "DefaultSampler")
    return Config(
        dict(
            default_scope="mmseg_resnest",
            train_dataloader=loader("train", 4, train, "InfiniteSampler"),
            val_dataloader=val, test_dataloader=val,
            val_evaluator=evaluator, test_evaluator=evaluator,
            train_cfg=dict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=3),
            val_cfg=dict(type="ValLoop"), test_cfg=dict(type="TestLoop"),
            optim_wrapper=dict(
                type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.01, weight_decay=0.0)
            ),
            param_scheduler=[
                dict(type="PolyLR", power=0.9, begin=0, end=iterations + 1, by_epoch=False)
            ],
            default_hooks=dict(
                checkpoint=dict(
                    type="CheckpointHook", by_epoch=False, interval=3, save_best="mIoU",
                    rule="greater",
                ),
                logger=dict(type="LoggerHook", interval=1, log_metric_by_epoch=False),
            ),
            log_processor=dict(by_epoch=False), randomness=dict(seed=0),
            model=dict(
                type="EncoderDecoder",
                data_preprocessor=dict(
                    type="SegDataPreProcessor", mean=[123.675, 116.28, 103.53],
                    std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_val=0, seg_pad_val=255,
                    size=(48, 64),
                ),
                backbone=dict(
                    type="ResNeSt", arch=ARCH, output_stride=8, out_indices=(0, 1, 2, 3),
                    norm_cfg=dict(type="BN"),
                ),
                decode_head=dict(
                    type="FCNHead", in_channels=512, in_index=1, channels=16, num_convs=1,
                    concat_input=False, norm_cfg=dict(type="BN"), align_corners=False, **head,
                ),
                **(
                    dict(multilabel=True, test_cfg=dict(thresholds=[0.4, 0.5, 0.5]))
                    if several
                    else {}
                ),
            ),
        )
    )  # fmt: skip
