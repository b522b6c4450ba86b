# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# DeepLabV3+, ResNet-50, CamVid: from scratch in minutes on one GPU (docs/camvid.md).
_base_ = [
    "_base_/models/deeplabv3plus.py",
    "_base_/models/resnet50.py",
    "_base_/datasets/camvid_strong.py",
    "_base_/schedules/scratch_camvid_gpu.py",
]
loss = dict(class_weight=_base_.class_weights)
model = dict(
    backbone=dict(_base_.backbone, init_cfg=None),
    decode_head=dict(channels=256, num_classes=_base_.num_classes, loss_decode=loss),
    auxiliary_head=dict(num_classes=_base_.num_classes, loss_decode=loss),
)
