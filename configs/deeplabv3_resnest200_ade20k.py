# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# DeepLabV3, ResNeSt-200, ADE20K: published 82.45 pixAcc, 48.36 mIoU (multi-scale).
_base_ = [
    "_base_/models/deeplabv3.py",
    "_base_/models/resnest200.py",
    "_base_/datasets/ade20k.py",
    "_base_/schedules/ade20k_180e.py",
]
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
