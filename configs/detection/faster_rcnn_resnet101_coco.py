# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Faster R-CNN, ResNet-101, COCO: published box AP 41.37.
_base_ = [
    "_base_/faster_rcnn.py",
    "_base_/resnet101.py",
    "_base_/coco.py",
    "_base_/authors_90k.py",
]
model = dict(backbone=dict(_base_.backbone, frozen_stages=1), data_preprocessor=_base_.pixels)
