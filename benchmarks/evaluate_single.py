# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Evaluation at one scale, from the files to the scores.

DeepLabV3 with ResNeSt-50 in MMSegmentation's variant, 150 classes, seeded weights, two images of
341x256. The stack runs its segmentor, its ResNeSt and its ``IoUMetric``. Compared are the
labels; besides, the mIoU has to be the same to 0.01.
"""

from __future__ import annotations

import torch
from harness import Comparison, Work
from mmseg.evaluation import IoUMetric
from models import SIZE, Images, evaluate, our_model, same_evaluation, stock_model

from mmseg_resnest.engine.label_predictions import predict_labels_only
from mmseg_resnest.evaluation import SegmentationMetric
from mmseg_resnest.io.memory import keep_freed_memory
from mmseg_resnest.models import fold_for_inference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": SIZE[::-1], "keep_ratio": True},
    {"type": "LoadAnnotations", "reduce_zero_label": True},
    {"type": "PackSegInputs"},
]


def stack(case: str) -> Work:
    model, images = stock_model().to(DEVICE), Images(PIPELINE)
    return lambda: evaluate(model, images, IoUMetric())


def ours(case: str) -> Work:
    # What tools/test.py does.
    keep_freed_memory()
    model, images = our_model().to(DEVICE), Images(PIPELINE)
    predict_labels_only(model)
    if DEVICE == "cpu":
        fold_for_inference(model)
    return lambda: evaluate(model, images, SegmentationMetric())


COMPARISON = Comparison(
    title="Single-scale evaluation, end to end",
    reference="MMSegmentation",
    cases={"341x256": "2 images of 341x256, 150 classes, DeepLabV3 with ResNeSt-50"},
    ways={"MMSegmentation": stack, "mmseg-resnest": ours},
    agree=same_evaluation,
    least={"mmseg-resnest": 1.4},
    most_memory={"mmseg-resnest": 2.0},
    repeats=5,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
