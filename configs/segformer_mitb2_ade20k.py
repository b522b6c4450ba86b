# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegFormer-B2, ADE20K: MMSegmentation's zoo says 45.58 / 47.03 mIoU (single / multi-scale).
_base_ = [
    "_base_/models/segformer_mitb2.py",
    "_base_/datasets/openmmlab_ade20k_512x512.py",
    "_base_/schedules/adamw_160k.py",
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
)
