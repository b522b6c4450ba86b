# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegNeXt-S, ADE20K: MMSegmentation's zoo says 44.16 / 45.81 mIoU (single / multi-scale).
_base_ = [
    "_base_/models/segnext_mscans.py",
    "_base_/datasets/openmmlab_ade20k_512x512.py",
    "_base_/schedules/adamw_160k.py",
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
)
