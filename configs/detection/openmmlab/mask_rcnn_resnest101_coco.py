# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MMDetection's own Mask R-CNN with ResNeSt-101, COCO: its zoo says box AP 45.2, mask AP 40.2.
_base_ = [
    "../_base_/openmmlab_mask_rcnn.py",
    "../../_base_/models/resnest101.py",
    "../_base_/openmmlab_coco_masks.py",
    "../_base_/openmmlab_12e.py",
]
model = dict(backbone=dict(_base_.backbone, output_stride=32, frozen_stages=1))
