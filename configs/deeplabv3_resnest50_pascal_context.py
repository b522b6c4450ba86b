# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# DeepLabV3, ResNeSt-50, Pascal Context: published 80.41 pixAcc, 53.19 mIoU (multi-scale).
_base_ = [
    "_base_/models/deeplabv3.py",
    "_base_/models/resnest50.py",
    "_base_/datasets/pascal_context.py",
    "_base_/schedules/pascal_context_80e.py",
]
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
