# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A training step of DeepLabV3 with ResNeSt-50: crops of 480, batch 2.

MMSegmentation's variant at output stride 8, 150 classes, batch norm, the same seeded weights and
the same dropout; forward, backward and the step of SGD. Compared are the loss and the gradient's
norm, to a thousandth.
"""

from __future__ import annotations

from typing import Any

import torch
from harness import Comparison, Work
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from models import CLASSES, our_model, stock_model

from mmseg_resnest.engine.launch import keep_freed_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = (480, 480)


def _step(model: Any) -> Work:
    model = model.to(DEVICE).train()
    model.data_preprocessor.size = SIZE
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *SIZE), generator=generator, dtype=torch.uint8)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo={"img_shape": SIZE, "ori_shape": SIZE, "pad_shape": SIZE})
        coarse = torch.randint(0, CLASSES, (1, 8, 8), generator=generator)
        sample.gt_sem_seg = PixelData(data=coarse.repeat_interleave(60, 1).repeat_interleave(60, 2))
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
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        return torch.stack([loss.detach(), torch.stack(norms).norm()]).cpu()

    return work


def stack(case: str) -> Work:
    return _step(stock_model(50))


def ours(case: str) -> Work:
    keep_freed_memory()  # as tools/train.py does
    return _step(our_model(50))


COMPARISON = Comparison(
    title="Training step",
    reference="MMSegmentation",
    cases={"480x480, batch 2": "DeepLabV3 with ResNeSt-50, 2 crops of 480x480"},
    ways={"MMSegmentation": stack, "mmseg-resnest": ours},
    agree=lambda expected, result: float(torch.allclose(expected, result, rtol=1e-3)),
    least={"mmseg-resnest": 1.15},
    repeats=3,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
