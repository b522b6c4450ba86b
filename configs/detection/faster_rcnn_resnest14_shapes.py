# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Faster R-CNN, ResNeSt-14, the drawn shapes, from scratch: fewer channels, regions and anchors.
_base_ = [
    "_base_/faster_rcnn.py",
    "../_base_/models/resnest14.py",
    "_base_/shapes.py",
    "_base_/shapes_400.py",
]
model = dict(
    backbone=dict(_base_.backbone, output_stride=32),
    neck=dict(out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(num_classes=4, in_channels=128, conv_out_channels=128, fc_out_channels=256),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64))
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)
