# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Runs of the project's configs with tiny models, as ``train()`` makes them, in this process."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.saving import HISTORY
from mmseg_resnest.engine.training import train

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ARCH = dict(blocks=(1, 1, 1, 1), radix=2, groups=1, base_width=4, stem_width=4, avd_first=False)
FCN = "fcn_resnest14_scenes"

#: Heads in place of the one of ``fcn_resnest14_scenes``.
HEADS: dict[str, dict[str, Any]] = {
    "fcn": {},
    "deeplabv3": dict(
        type="DeepLabV3Head", in_channels=2048, in_index=3, channels=16, dilations=(2, 4, 6),
    ),
    "encnet": dict(
        type="PublishedEncHead", in_channels=(512, 1024, 2048), in_index=(1, 2, 3), channels=16,
        num_codes=4, use_se_loss=True, add_lateral=False,
        loss_se_decode=dict(
            type="CrossEntropyLoss", use_sigmoid=True, loss_weight=0.2, avg_non_ignore=True
        ),
    ),
}  # fmt: skip


@cache
def _loaded(changes: str) -> Config:
    """The demo's config with changes, which are JSON."""
    return load_config(CONFIGS / f"{FCN}.py", json.loads(changes))


def small_config(
    scenes: Path, head: str = "fcn", iterations: int = 6, validate: bool = False, **options: Any
) -> Config:
    """The demo's config with a tiny backbone and another head, by default without validation.

    Args:
        scenes: What ``write_scenes`` wrote.
        head: A key of :data:`HEADS`.
        iterations: Length of the run and of its schedules.
        validate: Whether it validates, in this process.
        **options: More ``--cfg-options``, with ``__`` in place of dots.
    """
    changes = {
        "train_cfg.max_iters": iterations,
        "param_scheduler": [
            dict(type="LinearLR", start_factor=0.1, begin=0, end=2, by_epoch=False),
            dict(type="PolyLR", power=0.9, begin=2, end=iterations + 1, by_epoch=False),
        ],
        "train_dataloader.batch_size": 2,
        "train_dataloader.num_workers": 0,
        "val_dataloader.num_workers": 0,
        "default_hooks.checkpoint.interval": 3,
        "default_hooks.checkpoint.max_keep_ckpts": -1,
        "default_hooks.checkpoint.save_best": None,
        "default_hooks.logger.interval": 1,
        "data_root": str(scenes),
    }
    changes.update({key.replace("__", "."): value for key, value in options.items()})
    cfg = copy.deepcopy(_loaded(json.dumps(changes)))
    if not validate:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    (crop,) = [s for s in cfg.train_dataloader.dataset.pipeline if s.type == "RandomCrop"]
    crop.crop_size = (64, 64)
    model = cfg.model
    model.backbone.update(arch=ARCH, norm_cfg=dict(type="BN"))
    heads = dict(decode_head=model.decode_head, auxiliary_head=model.auxiliary_head)
    for one in heads.values():
        one.update(norm_cfg=dict(type="BN"), channels=16)
    if HEADS[head]:
        model.decode_head = {
            "norm_cfg": dict(type="BN"), "num_classes": 12, "dropout_ratio": 0.1,
            "align_corners": True, "loss_decode": model.decode_head.loss_decode, **HEADS[head],
        }  # fmt: skip
        model.backbone.output_stride = 8
    return cfg


def use_sgd(cfg: Config) -> Config:
    """The published recipes' optimizer; AdamW's first steps make much of how numbers round."""
    cfg.optim_wrapper.optimizer = dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4)
    return cfg


def run(cfg: Config, work_dir: Path, **arguments: Any) -> dict[str, Any]:
    """Train with one thread; returns what ``train`` does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(cfg, work_dir=work_dir, **arguments)
    finally:
        torch.set_num_threads(threads)


def losses(checkpoint: Path) -> list[float]:
    """The losses of all iterations up to a checkpoint, read by torch alone."""
    hub = torch.load(checkpoint, weights_only=True)["message_hub"]
    return hub["log_scalars"]["train/loss"][HISTORY].tolist()


def logged(work_dir: Path, name: str = "lr") -> dict[int, float]:
    """A logged value by iteration, from all starts of a run."""
    values = {}
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in map(json.loads, path.read_text().splitlines()):
            if name in line:
                values[line["step"]] = line[name]
    return values
