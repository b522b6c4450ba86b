# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Evaluation at six scales with mirror images, from the files to the scores.

MMSegmentation's protocol: the whole image at 0.5 to 1.75 times its size, each also mirrored, mean
of the softmax. Model and images are those of the single-scale evaluation; the stack runs its
``SegTTAModel``, this package's the class of the same name. Compared are the labels; besides, the
mIoU has to be the same to 0.01.
"""

from __future__ import annotations

from mmseg.models.segmentors import SegTTAModel as StockSegTTAModel
from models import SIZE, evaluation, our_model, stock_model

from mmseg_resnest.models import SegTTAModel

SCALES = [tuple(int(edge * r) for edge in SIZE[::-1]) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
VIEWS = [
    [dict(type="Resize", scale=scale, keep_ratio=True) for scale in SCALES],
    [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
    [dict(type="LoadAnnotations", reduce_zero_label=True)],
    [dict(type="PackSegInputs")],
]
PIPELINE = [dict(type="LoadImageFromFile"), dict(type="TestTimeAug", transforms=VIEWS)]


COMPARISON = evaluation(
    PIPELINE,
    lambda: StockSegTTAModel(stock_model()),
    lambda: SegTTAModel(our_model()),
    title="Multi-scale and mirrored evaluation, end to end",
    cases={"341x256": "2 images of 341x256, 12 views each, 150 classes, DeepLabV3 with ResNeSt-50"},
    least={"mmseg-resnest": 1.5},
    repeats=3,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
