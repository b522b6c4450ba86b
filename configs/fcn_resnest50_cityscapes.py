# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# FCN, ResNeSt-50, Cityscapes.
_base_ = [
    "_base_/models/fcn.py",
    "_base_/models/resnest50.py",
    "_base_/datasets/cityscapes.py",
    "_base_/schedules/cityscapes_240e.py",
]
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
