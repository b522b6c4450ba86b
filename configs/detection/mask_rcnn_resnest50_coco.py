# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Mask R-CNN, ResNeSt-50, COCO: published box AP 42.81, mask AP 38.14.
_base_ = [
    "_base_/mask_rcnn.py",
    "../_base_/models/resnest50.py",
    "_base_/coco_masks.py",
    "_base_/authors_90k.py",
]
model = dict(backbone=dict(_base_.backbone, output_stride=32, frozen_stages=1))
