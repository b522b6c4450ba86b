# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# EncNet, ResNeSt-50, ADE20K.
_base_ = [
    "_base_/models/encnet.py",
    "_base_/models/resnest50.py",
    "_base_/datasets/ade20k.py",
    "_base_/schedules/ade20k_120e.py",
]
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
