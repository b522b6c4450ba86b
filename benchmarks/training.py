# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A training step of DeepLabV3 with ResNeSt-50: crops of 480, batch 2.

MMSegmentation's variant at output stride 8, 150 classes, batch norm, the same seeded weights and
the same dropout; forward, backward and the step of SGD. Compared are the loss and the gradient's
norm, to a thousandth.
"""

from __future__ import annotations

import torch
from harness import Comparison, Work
from models import our_model, stock_model, training_step

from mmseg_resnest.engine.launch import keep_freed_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = (480, 480)


def stack(case: str) -> Work:
    return training_step(stock_model(50).to(DEVICE), SIZE, 2)


def ours(case: str) -> Work:
    keep_freed_memory()  # as tools/train.py does
    return training_step(our_model(50).to(DEVICE), SIZE, 2)


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
