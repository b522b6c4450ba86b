# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# DeepLabV3, ResNeSt-200, Pascal Context: published 82.50 pixAcc, 58.37 mIoU (multi-scale).
_base_ = [
    "_base_/models/deeplabv3.py",
    "_base_/models/resnest200.py",
    "_base_/datasets/pascal_context.py",
    "_base_/schedules/pascal_context_80e.py",
]
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
