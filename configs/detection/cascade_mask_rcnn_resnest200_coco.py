# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Cascade Mask R-CNN, ResNeSt-200, COCO: published box AP 50.54, mask AP 44.21,
# with a schedule three times as long and further tricks.
_base_ = [
    "_base_/cascade_mask_rcnn.py",
    "../_base_/models/resnest200.py",
    "_base_/coco_masks.py",
    "_base_/authors_90k.py",
]
model = dict(
    backbone=dict(_base_.backbone, output_stride=32, frozen_stages=1),
    roi_head=dict(mask_head=dict(num_convs=8)),
)
