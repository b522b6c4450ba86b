# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# COCO 2017, boxes and masks.
_base_ = "coco.py"
load = [
    dict(type="LoadImageFromFile"),
    dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True),
]
train_pipeline = [*load, _base_.resize, *_base_.flip_and_pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric=["bbox", "segm"])
test_evaluator = val_evaluator
