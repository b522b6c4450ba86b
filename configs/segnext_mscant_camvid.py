# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegNeXt-T, CamVid: from scratch, sized for two CPU cores.
_base_ = [
    "_base_/models/segnext.py",
    "_base_/models/mscant.py",
    "_base_/datasets/camvid_small.py",
    "_base_/schedules/scratch_camvid_small.py",
]
# (1 / share of the training pixels) ** 0.5, mean 1 over pixels
weights = [0.9, 0.75, 3.7, 0.64, 1.71, 1.16, 3.52, 3.64, 1.56, 4.6, 7.87]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(_base_.backbone, init_cfg=None),
    decode_head=dict(
        _base_.decode_head,
        num_classes=_base_.num_classes,
        loss_decode=dict(class_weight=weights),
    ),
)
