# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Cascade R-CNN: three box heads at overlaps of 0.5, 0.6 and 0.7, one box for all classes, and 2000
# proposals after NMS in training. The weights of the stages' losses are MMDetection's.
_base_ = "faster_rcnn.py"
model = dict(
    type="mmdet.CascadeRCNN",
    roi_head=dict(
        type="mmdet.CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            dict(
                _base_.box_head,
                reg_class_agnostic=True,
                bbox_coder=dict(_base_.coder, target_stds=[1 / n, 1 / n, 2 / n, 2 / n]),
            )
            for n in (10, 20, 30)
        ],
    ),
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=2000),
        rcnn=[
            dict(
                _base_.roi_train,
                assigner=dict(
                    _base_.roi_train["assigner"], pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou
                ),
                mask_size=28,
            )
            for iou in (0.5, 0.6, 0.7)
        ],
    ),
)
