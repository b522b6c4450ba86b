# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Cascade R-CNN, ResNet-50, COCO: published box AP 42.52.
_base_ = [
    "_base_/cascade_rcnn.py",
    "_base_/resnet50.py",
    "_base_/coco.py",
    "_base_/authors_90k.py",
]
model = dict(backbone=dict(_base_.backbone, frozen_stages=1), data_preprocessor=_base_.pixels)
