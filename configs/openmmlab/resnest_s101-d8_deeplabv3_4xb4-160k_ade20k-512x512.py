# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MMSegmentation's DeepLabV3, ADE20K: its zoo says 45.71 / 46.59 mIoU (single / multi-scale).
_base_ = [
    "../_base_/models/openmmlab_deeplabv3.py",
    "../_base_/datasets/openmmlab_ade20k_512x512.py",
    "../_base_/schedules/openmmlab_160k.py",
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
