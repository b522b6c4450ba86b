# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MMSegmentation's DeepLabV3+, Cityscapes: its zoo says 79.62 / 80.27 mIoU (single / multi-scale).
_base_ = [
    "../_base_/models/openmmlab_deeplabv3plus.py",
    "../_base_/datasets/openmmlab_cityscapes_512x1024.py",
    "../_base_/schedules/openmmlab_80k.py",
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
