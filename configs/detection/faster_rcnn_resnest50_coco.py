# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Faster R-CNN, ResNeSt-50, COCO: published box AP 42.33.
_base_ = [
    "_base_/faster_rcnn.py",
    "../_base_/models/resnest50.py",
    "_base_/coco.py",
    "_base_/authors_90k.py",
]
model = dict(backbone=dict(_base_.backbone, output_stride=32, frozen_stages=1))
