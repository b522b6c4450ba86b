# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Faster R-CNN, ResNeSt-269, COCO, GluonCV 0.7's recipe: published box AP 46.5.
_base_ = [
    "_base_/faster_rcnn_gluon.py",
    "../_base_/models/resnest269.py",
    "_base_/coco_large.py",
    "_base_/gluon_26e_batch8.py",
]
model = dict(backbone=dict(_base_.backbone, output_stride=32))
train_dataloader = dict(batch_size=8)
