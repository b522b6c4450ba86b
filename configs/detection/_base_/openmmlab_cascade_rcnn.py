# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MMDetection's own Cascade R-CNN with a ResNeSt: no norm in the FPN, smooth L1 losses of boxes and
# of the RPN, deviations of boxes' deltas rounded to three digits, and no anchors beyond the image.
_base_ = "cascade_rcnn.py"
model = dict(
    neck=dict(norm_cfg=None),
    rpn_head=dict(loss_bbox=dict(type="mmdet.SmoothL1Loss", beta=1 / 9, loss_weight=1.0)),
    train_cfg=dict(rpn=dict(allowed_border=0)),
    roi_head=dict(
        bbox_head=[
            dict(
                _base_.box_head,
                reg_class_agnostic=True,
                bbox_coder=dict(_base_.coder, target_stds=stds),
                loss_bbox=dict(type="mmdet.SmoothL1Loss", beta=1.0, loss_weight=1.0),
            )
            for stds in (
                [0.1, 0.1, 0.2, 0.2],
                [0.05, 0.05, 0.1, 0.1],
                [0.033, 0.033, 0.067, 0.067],
            )
        ],
    ),
)
