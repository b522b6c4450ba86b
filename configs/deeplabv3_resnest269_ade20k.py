# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# DeepLabV3, ResNeSt-269, ADE20K: published 82.62 pixAcc, 47.60 mIoU (multi-scale).
_base_ = [
    "_base_/models/deeplabv3.py",
    "_base_/models/resnest269.py",
    "_base_/datasets/ade20k.py",
    "_base_/schedules/ade20k_120e.py",
]
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
