# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Mask R-CNN, ResNeSt-101, COCO: published box AP 45.75, mask AP 40.65.
_base_ = [
    "_base_/mask_rcnn.py",
    "../_base_/models/resnest101.py",
    "_base_/coco_masks.py",
    "_base_/authors_90k.py",
]
model = dict(backbone=dict(_base_.backbone, output_stride=32, frozen_stages=1))
