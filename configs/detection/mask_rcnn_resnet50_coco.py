# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Mask R-CNN, ResNet-50, COCO: published box AP 39.97, mask AP 36.05.
_base_ = [
    "_base_/mask_rcnn.py",
    "_base_/resnet50.py",
    "_base_/coco_masks.py",
    "_base_/authors_90k.py",
]
model = dict(backbone=dict(_base_.backbone, frozen_stages=1), data_preprocessor=_base_.pixels)
