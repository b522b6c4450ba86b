# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Evaluation at one scale, from the files to the scores.

DeepLabV3 with ResNeSt-50 in MMSegmentation's variant, 150 classes, seeded weights, two images of
341x256. The stack runs its segmentor, its ResNeSt and its ``IoUMetric``. Compared are the
labels; besides, the mIoU has to be the same to 0.01.
"""

from __future__ import annotations

from typing import Any

from models import SIZE, evaluation, our_model, stock_model

from mmseg_resnest.engine.label_predictions import predict_labels_only

PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=SIZE[::-1], keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]


def ours() -> Any:
    model = our_model()
    predict_labels_only(model)
    return model


COMPARISON = evaluation(
    PIPELINE,
    stock_model,
    ours,
    title="Single-scale evaluation, end to end",
    cases={"341x256": "2 images of 341x256, 150 classes, DeepLabV3 with ResNeSt-50"},
    least={"mmseg-resnest": 1.4},
    repeats=5,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
