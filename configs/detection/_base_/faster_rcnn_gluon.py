# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# GluonCV 0.7's Faster R-CNN: more proposals of the RPN.
_base_ = "faster_rcnn.py"
model = dict(
    train_cfg=dict(rpn_proposal=dict(nms_pre=12000, max_per_img=2000)),
    test_cfg=dict(rpn=dict(nms_pre=6000, max_per_img=1000)),
)
