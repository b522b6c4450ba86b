# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# DeepLabV3, ResNeSt-269, VOC 2012 augmented.
_base_ = [
    "_base_/models/deeplabv3.py",
    "_base_/models/resnest269.py",
    "_base_/datasets/voc12aug.py",
    "_base_/schedules/voc12aug_80e.py",
]
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
