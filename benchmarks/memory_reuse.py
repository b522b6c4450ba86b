# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A training step with and without freed memory being kept.

The demo's model (``configs/fcn_resnest14_scenes.py``) at its crop and batch, on made-up images;
forward, backward and optimizer step. ``tools/train.py`` keeps freed memory on a CPU
(``mmseg_resnest.engine.launch.keep_freed_memory``); the C library gives it back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import ROOT, Comparison, Work
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.launch import keep_freed_memory
from mmseg_resnest.engine.runner import build_model

CONFIG = Path(ROOT) / "configs" / "fcn_resnest14_scenes.py"


def _crop(cfg: Any) -> tuple[int, int]:
    steps = cfg.train_dataloader.dataset.pipeline
    height, width = next(step for step in steps if "Crop" in str(step["type"]))["crop_size"]
    return height, width


def _step() -> Work:
    cfg = load_config(CONFIG)
    torch.manual_seed(0)
    model: Any = build_model(cfg).train()
    size, count = _crop(cfg), cfg.train_dataloader.batch_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    samples = []
    for _ in range(count):
        sample = SegDataSample(metainfo={"img_shape": size, "ori_shape": size, "pad_shape": size})
        label = torch.randint(0, model.num_classes, (1, *size), generator=generator)
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def work() -> torch.Tensor:
        data = model.data_preprocessor({"inputs": list(images), "data_samples": samples}, True)
        # The same dropout each time.
        torch.manual_seed(0)
        losses = model(**data, mode="loss")
        loss = sum(value for name, value in losses.items() if "loss" in name)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return work


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
    agree=lambda expected, loss: float(torch.allclose(expected, loss, rtol=1e-4)),
    repeats=7,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
