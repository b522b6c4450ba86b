# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Mask R-CNN, ResNet-101, COCO: published box AP 41.78, mask AP 37.51.
_base_ = [
    "_base_/mask_rcnn.py",
    "_base_/resnet101.py",
    "_base_/coco_masks.py",
    "_base_/authors_90k.py",
]
model = dict(backbone=dict(_base_.backbone, frozen_stages=1), data_preprocessor=_base_.pixels)
