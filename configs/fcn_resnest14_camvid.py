# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# FCN, ResNeSt-14, CamVid: from scratch, sized for two CPU cores.
_base_ = [
    "_base_/models/fcn_skip.py",
    "_base_/models/resnest14.py",
    "_base_/datasets/camvid_small.py",
    "_base_/schedules/scratch_camvid_small.py",
]
model = dict(
    backbone=dict(_base_.backbone, output_stride=32),
    decode_head=dict(
        num_classes=_base_.num_classes, loss_decode=dict(class_weight=_base_.class_weights)
    ),
    auxiliary_head=dict(channels=64, num_classes=_base_.num_classes),
)
