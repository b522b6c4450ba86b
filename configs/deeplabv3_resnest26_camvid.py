# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# DeepLabV3, ResNeSt-26, CamVid: from scratch on a GPU.
_base_ = [
    "_base_/models/deeplabv3.py",
    "_base_/models/resnest26.py",
    "_base_/datasets/camvid.py",
    "_base_/schedules/scratch_camvid.py",
]
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
