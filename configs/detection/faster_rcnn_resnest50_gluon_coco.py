# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Faster R-CNN, ResNeSt-50, COCO, GluonCV 0.7's recipe: published box AP 42.7.
_base_ = [
    "_base_/faster_rcnn_gluon.py",
    "../_base_/models/resnest50.py",
    "_base_/coco.py",
    "_base_/gluon_26e.py",
]
model = dict(backbone=dict(_base_.backbone, output_stride=32))
