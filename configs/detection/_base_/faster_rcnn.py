# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Faster R-CNN with FPN, synchronised batch norm in FPN and box head, four convolutions and one linear
# layer in the box head, L1 losses: the ResNeSt authors' detector (detectron2-ResNeSt).
custom_imports = dict(imports=["mmseg_resnest.models.detection"], allow_failed_imports=False)
norm_cfg = dict(type="SyncBN")
iou = dict(iou_calculator=dict(type="mmdet.BboxOverlaps2D"))
coder = dict(type="mmdet.DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0])
box_head = dict(
    type="mmdet.Shared4Conv1FCBBoxHead",
    in_channels=256,
    conv_out_channels=256,
    fc_out_channels=1024,
    roi_feat_size=7,
    num_classes=80,
    norm_cfg=norm_cfg,
    bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2], **coder),
    reg_class_agnostic=False,
    reg_predictor_cfg=dict(type="mmdet.Linear"),
    cls_predictor_cfg=dict(type="mmdet.Linear"),
    loss_cls=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    loss_bbox=dict(type="mmdet.L1Loss", loss_weight=1.0),
)
# For the detectors with masks.
mask_roi_extractor = dict(
    type="mmdet.SingleRoIExtractor",
    roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
    out_channels=256,
    featmap_strides=[4, 8, 16, 32],
)
mask_head = dict(
    type="mmdet.FCNMaskHead",
    num_convs=4,
    in_channels=256,
    conv_out_channels=256,
    num_classes=80,
    norm_cfg=norm_cfg,
    loss_mask=dict(type="mmdet.CrossEntropyLoss", use_mask=True, loss_weight=1.0),
)
roi_train = dict(
    assigner=dict(
        type="mmdet.MaxIoUAssigner",
        pos_iou_thr=0.5,
        neg_iou_thr=0.5,
        min_pos_iou=0.5,
        match_low_quality=False,
        ignore_iof_thr=-1,
        **iou,
    ),
    sampler=dict(
        type="mmdet.RandomSampler",
        num=512,
        pos_fraction=0.25,
        neg_pos_ub=-1,
        add_gt_as_proposals=True,
    ),
    pos_weight=-1,
    debug=False,
)
model = dict(
    type="mmdet.FasterRCNN",
    data_preprocessor=dict(
        type="mmdet.DetDataPreprocessor",
        mean=[123.68, 116.779, 103.939],
        std=[58.393, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    neck=dict(
        type="mmdet.FPN",
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        num_outs=5,
        norm_cfg=norm_cfg,
    ),
    rpn_head=dict(
        type="mmdet.RPNHead",
        in_channels=256,
        feat_channels=256,
        anchor_generator=dict(
            type="mmdet.AnchorGenerator",
            scales=[8],
            ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
        ),
        bbox_coder=dict(target_stds=[1.0, 1.0, 1.0, 1.0], **coder),
        loss_cls=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="mmdet.L1Loss", loss_weight=1.0),
    ),
    roi_head=dict(
        type="mmdet.StandardRoIHead",
        bbox_roi_extractor=dict(
            type="mmdet.SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=box_head,
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type="mmdet.MaxIoUAssigner",
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                match_low_quality=True,
                ignore_iof_thr=-1,
                **iou,
            ),
            sampler=dict(
                type="mmdet.RandomSampler",
                num=256,
                pos_fraction=0.5,
                neg_pos_ub=-1,
                add_gt_as_proposals=False,
            ),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(
            nms_pre=2000,
            max_per_img=1000,
            nms=dict(type="nms", iou_threshold=0.7),
            min_bbox_size=0,
        ),
        rcnn=roi_train,
    ),
    test_cfg=dict(
        rpn=dict(
            nms_pre=1000,
            max_per_img=1000,
            nms=dict(type="nms", iou_threshold=0.7),
            min_bbox_size=0,
        ),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
    ),
)
