# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A training step with and without freed memory being kept.

The demo's model (``configs/fcn_resnest14_scenes.py``) at its crop and batch, on made-up images;
forward, backward and optimizer step. ``tools/train.py`` keeps freed memory on a CPU
(``mmseg_resnest.io.memory.keep_freed_memory``); the C library returns it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import ROOT, Comparison, Work
from models import training_step

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.io.memory import keep_freed_memory

CONFIG = Path(ROOT) / "configs" / "fcn_resnest14_scenes.py"


def _crop(cfg: Any) -> tuple[int, int]:
    steps = cfg.train_dataloader.dataset.pipeline
    height, width = next(step for step in steps if "Crop" in str(step["type"]))["crop_size"]
    return height, width


def _step() -> Work:
    cfg = load_config(CONFIG)
    torch.manual_seed(0)
    return training_step(build_model(cfg), _crop(cfg), cfg.train_dataloader.batch_size)


def given_back(case: str) -> Work:
    return _step()


def kept(case: str) -> Work:
    keep_freed_memory()
    return _step()


COMPARISON = Comparison(
    title="Training step of the demo, freed memory kept or given back",
    reference="given back",
    cases={"step": "ResNeSt-14 FCN, the crop and batch of configs/fcn_resnest14_scenes.py"},
    ways={"given back": given_back, "kept": kept},
    agree=lambda expected, result: float(torch.allclose(expected, result, rtol=1e-4)),
    repeats=7,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
