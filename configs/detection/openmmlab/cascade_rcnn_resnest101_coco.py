# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MMDetection's own Cascade R-CNN with ResNeSt-101, COCO: its zoo says box AP 46.8.
_base_ = [
    "../_base_/openmmlab_cascade_rcnn.py",
    "../../_base_/models/resnest101.py",
    "../_base_/coco.py",
    "../_base_/openmmlab_12e.py",
]
model = dict(backbone=dict(_base_.backbone, output_stride=32, frozen_stages=1))
