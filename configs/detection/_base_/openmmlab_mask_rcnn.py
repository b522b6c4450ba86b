# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MMDetection's own Mask R-CNN with a ResNeSt: no norm in the FPN, and each object has a region.
_base_ = "mask_rcnn.py"
model = dict(
    neck=dict(norm_cfg=None),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=True))),
)
