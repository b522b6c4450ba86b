# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Inference of DeepLabV3 with ResNeSt-101, from normalised images to the head's scores.

MMSegmentation's variant at output stride 8, 150 classes, the same seeded weights everywhere.
"Plain" are this package's layers as they are; torch.compile, ONNX Runtime and OpenVINO get these.
"mmseg-resnest" is what its tools compute on a CPU. Labels of all pixels are compared, and every
score must equal the reference's to 1e-4 of the largest. Beside them are other networks that a user
could take, with parameters, FLOPs of one image (two a multiply-add) and the mIoU that their zoo
publishes for ADE20K, single scale / multi-scale and mirrored. Weights here are random.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from harness import Comparison, Work
from models import our_model, stock_model
from peers import REMARKS, SMP, ZOO, costs, missing, smp_model, zoo_model
from runtimes import in_torch, variants
from torch import Tensor, nn

from mmseg_resnest.io.memory import keep_freed_memory
from mmseg_resnest.models import fold_for_inference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = (512, 512)
CASES = {
    "batch 1": "1 image of 512x512",
    "batch 8": "8 images of 512x512",
}


class _Scores(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model.decode_head(self.model.extract_feat(images))
        return scores.contiguous()


def _images(case: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(int(case.split()[1]), 3, *SIZE, generator=generator).to(DEVICE)


def stack(case: str) -> Work:
    return in_torch(_Scores(stock_model(101)).to(DEVICE).eval(), _images(case))


def plain(case: str) -> Work:
    """This package's layers as they are, with freed memory kept as the tools keep it."""
    keep_freed_memory()
    return in_torch(_Scores(our_model(101)).to(DEVICE).eval(), _images(case))


def ours(case: str) -> Work:
    """What tools/test.py and tools/predict.py compute on a CPU."""
    keep_freed_memory()
    model = our_model(101).to(DEVICE)
    return in_torch(
        _Scores(fold_for_inference(model) if DEVICE == "cpu" else model).eval(), _images(case)
    )


def other(build: Callable[[], nn.Module]) -> Callable[[str], Work]:
    """Another network; images to scores."""
    return lambda case: in_torch(build().to(DEVICE).eval(), _images(case))


def agree(expected: Tensor, scores: Tensor) -> float:
    """Share of equal labels of the images' pixels; none where a score is off by more than 1e-4."""
    if (scores - expected).abs().max() > 1e-4 * expected.abs().max():
        return 0.0
    equal = [
        (_labels(one) == _labels(other)).double().mean()
        for one, other in zip(expected.split(1), scores.split(1), strict=True)
    ]
    return float(sum(equal) / len(equal))


def _labels(scores: Tensor) -> Tensor:
    """Labels (N, 512, 512): scores resized as the stack resizes them, and the largest."""
    full = F.interpolate(scores.cpu(), size=SIZE, mode="bilinear", align_corners=False)
    return full.argmax(1)


_found, MISSING = variants(lambda: _Scores(our_model(101)).eval(), _images)
VARIANTS: dict[str, Callable[[str], Work]] = {
    "MMSegmentation": stack,
    "mmseg-resnest, plain": plain,
    "mmseg-resnest": ours,
    **_found,
}
_networks: dict[str, Callable[[], nn.Module]] = {
    name: lambda name=name: _Scores(zoo_model(name))
    for name in ZOO  # type: ignore[misc]
}
if why := missing(SMP):
    MISSING[SMP] = why
else:
    _networks[SMP] = lambda: smp_model(101)
VARIANTS |= {name: other(build) for name, build in _networks.items()}
_weights = {name: f"openmmlab/{config}" for name, config in ZOO.items()}
_weights["MMSegmentation"] = "openmmlab/deeplabv3_resnest101_ade20k"
_networks["MMSegmentation"] = lambda: _Scores(stock_model(101))

COMPARISON = Comparison(
    title="Inference",
    reference="MMSegmentation",
    cases=CASES,
    variants=VARIANTS,
    agree=agree,
    least={"mmseg-resnest": 1.5},
    most_memory={"mmseg-resnest": 2.0},
    missing=MISSING,
    remarks=REMARKS,
    images={case: int(case.split()[1]) for case in CASES},
    costs={
        name: partial(costs, build, SIZE, _weights.get(name, ""))
        for name, build in _networks.items()
    },
    # With eight images a turn of each takes minutes.
    left_out={"batch 8": ("mmseg-resnest, plain", "torch.compile, frozen", "ONNX Runtime", SMP)},
    repeats=3,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
