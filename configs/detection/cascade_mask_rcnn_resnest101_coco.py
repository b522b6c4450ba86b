# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Cascade Mask R-CNN, ResNeSt-101, COCO: published box AP 48.30, mask AP 41.56.
_base_ = [
    "_base_/cascade_mask_rcnn.py",
    "../_base_/models/resnest101.py",
    "_base_/coco_masks.py",
    "_base_/authors_90k.py",
]
model = dict(backbone=dict(_base_.backbone, output_stride=32, frozen_stages=1))
