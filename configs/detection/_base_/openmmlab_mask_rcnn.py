# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MMDetection's own Mask R-CNN with a ResNeSt: no norm in the FPN.
_base_ = "mask_rcnn.py"
model = dict(neck=dict(norm_cfg=None))
