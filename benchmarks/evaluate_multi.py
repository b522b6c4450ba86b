# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Evaluation at six scales with mirror images, from the files to the scores.

MMSegmentation's protocol: the whole image at 0.5 to 1.75 times its size, each also mirrored, mean
of the softmax. Model and images are those of the single-scale evaluation; the stack runs its
``SegTTAModel``, this package's the class of the same name. Compared are the labels; besides, the
mIoU has to be the same to 0.01.
"""

from __future__ import annotations

from typing import Any

import torch
from harness import Comparison, Work
from mmseg.evaluation import IoUMetric
from mmseg.models.segmentors import SegTTAModel as StockSegTTAModel
from models import SIZE, Images, evaluate, our_model, same_evaluation, stock_model

from mmseg_resnest.evaluation import SegmentationMetric
from mmseg_resnest.io.memory import keep_freed_memory
from mmseg_resnest.models import SegTTAModel, fold_for_inference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PIPELINE: list[dict[str, Any]] = [
    {"type": "LoadImageFromFile"},
    {
        "type": "TestTimeAug",
        "transforms": [
            [
                {
                    "type": "Resize",
                    "scale": tuple(int(edge * ratio) for edge in SIZE[::-1]),
                    "keep_ratio": True,
                }
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [
                {"type": "RandomFlip", "prob": 0.0, "direction": "horizontal"},
                {"type": "RandomFlip", "prob": 1.0, "direction": "horizontal"},
            ],
            [{"type": "LoadAnnotations", "reduce_zero_label": True}],
            [{"type": "PackSegInputs"}],
        ],
    },
]


def stack(case: str) -> Work:
    model, images = StockSegTTAModel(stock_model()).to(DEVICE).eval(), Images(PIPELINE)
    return lambda: evaluate(model, images, IoUMetric())


def ours(case: str) -> Work:
    keep_freed_memory()
    model, images = SegTTAModel(our_model()).to(DEVICE).eval(), Images(PIPELINE)
    if DEVICE == "cpu":
        fold_for_inference(model)
    return lambda: evaluate(model, images, SegmentationMetric())


COMPARISON = Comparison(
    title="Multi-scale and mirrored evaluation, end to end",
    reference="MMSegmentation",
    cases={"341x256": "2 images of 341x256, 12 views each, 150 classes, DeepLabV3 with ResNeSt-50"},
    ways={"MMSegmentation": stack, "mmseg-resnest": ours},
    agree=same_evaluation,
    least={"mmseg-resnest": 1.5},
    most_memory={"mmseg-resnest": 2.0},
    repeats=3,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
