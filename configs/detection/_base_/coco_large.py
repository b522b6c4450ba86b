# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# COCO 2017, boxes, at GluonCV's sizes for its largest model: short edge 640 to 864, long at most 1440.
_base_ = "coco.py"
resize = dict(scale=[(1440, 640), (1440, 864)])
train_pipeline = [*_base_.load, dict(_base_.resize, **resize), *_base_.flip_and_pack]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(_base_.test_pipeline[1], scale=(1440, 864)),
    *_base_.test_pipeline[2:],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
