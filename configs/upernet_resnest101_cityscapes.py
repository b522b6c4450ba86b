# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# UPerNet, ResNeSt-101, Cityscapes.
_base_ = [
    "_base_/models/upernet.py",
    "_base_/models/resnest101.py",
    "_base_/datasets/cityscapes.py",
    "_base_/schedules/cityscapes_240e.py",
]
model = dict(
    backbone=dict(_base_.backbone, output_stride=32),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
