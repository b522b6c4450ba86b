# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A training step of DeepLabV3 with ResNeSt-50: crops of 480, batch 2.

MMSegmentation's variant at output stride 8, 150 classes, batch norm, the same seeded weights and
the same dropout; forward, backward and the step of SGD. The loss must be equal to 1e-4 and the
gradient's norm to 1%: rounding alone moves the gradient of these weights by 0.9% in
MMSegmentation's order of sums and by 0.8% in this package's (float32 beside float64, crops of 120).
Beside them are other networks that a user could take, with their own losses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Comparison, Work
from models import our_model, stock_model, training_step
from peers import REMARKS, SMP, ZOO, missing, smp_model, smp_step, zoo_model

from mmseg_resnest.io.memory import keep_freed_memory
from mmseg_resnest.models import use_channels_last

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = (480, 480)
BOUNDS = torch.tensor([1e-4, 1e-2])


def stack(case: str) -> Work:
    return training_step(stock_model(50).to(DEVICE), SIZE, 2)


def ours(case: str) -> Work:
    keep_freed_memory()  # as tools/train.py does
    model = our_model(50).to(DEVICE)
    use_channels_last(model)
    return training_step(model, SIZE, 2)


def agree(expected: torch.Tensor, result: torch.Tensor) -> float:
    """1 where loss and norm of the gradient are the reference's, otherwise 0."""
    return float(bool(((result - expected).abs() <= BOUNDS * expected.abs()).all()))


VARIANTS: dict[str, Callable[[str], Work]] = {"MMSegmentation": stack, "mmseg-resnest": ours}
VARIANTS |= {
    name: lambda case, name=name: training_step(zoo_model(name).to(DEVICE), SIZE, 2)  # type: ignore[misc]
    for name in ZOO
}
MISSING = {}
if why := missing(SMP):
    MISSING[SMP] = why
else:
    VARIANTS[SMP] = lambda case: smp_step(smp_model(50).to(DEVICE), SIZE, 2)

COMPARISON = Comparison(
    title="Training step",
    reference="MMSegmentation",
    cases={"480x480, batch 2": "DeepLabV3 with ResNeSt-50, 2 crops of 480x480"},
    variants=VARIANTS,
    agree=agree,
    missing=MISSING,
    remarks=REMARKS,
    images={"480x480, batch 2": 2},
    least={"mmseg-resnest": 1.15},
    most_memory={"mmseg-resnest": 1.1},
    repeats=5,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
