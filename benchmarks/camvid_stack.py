# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The recipe of ResNeSt-50 in the stack's own parts: its network, transforms and metric."""

_base_ = "../configs/deeplabv3plus_resnest50_camvid.py"
norm_cfg = dict(type="BN", requires_grad=True)
head = dict(norm_cfg=norm_cfg, loss_decode=dict(type="mmseg.CrossEntropyLoss"))
model = dict(
    type="mmseg.EncoderDecoder",
    data_preprocessor=dict(type="mmseg.SegDataPreProcessor"),
    backbone=dict(
        _delete_=True,
        type="mmseg.ResNeSt",
        depth=50,
        stem_channels=64,
        radix=2,
        reduction_factor=4,
        avg_down_stride=True,
        contract_dilation=True,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(type="mmseg.DepthwiseSeparableASPPHead", **head),
    auxiliary_head=dict(
        type="mmseg.FCNHead", num_convs=1, concat_input=False, kernel_size=3, **head
    ),
)
crop_size = (360, 480)
train_pipeline = [
    dict(type="mmseg.LoadImageFromFile"),
    dict(type="mmseg.LoadAnnotations"),
    dict(type="mmseg.RandomFlip", prob=0.5),
    dict(type="mmseg.RandomResize", scale=(480, 360), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="mmseg.RandomRotate", prob=0.5, degree=10.0, pad_val=0, seg_pad_val=255),
    dict(type="mmseg.Pad", size=crop_size[::-1], pad_val=dict(img=0, seg=255)),
    dict(type="mmseg.RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="mmseg.PhotoMetricDistortion"),
    dict(type="mmseg.PackSegInputs"),
]
test_pipeline = [
    dict(type="mmseg.LoadImageFromFile"),
    dict(type="mmseg.Resize", scale=(480, 360), keep_ratio=True),
    dict(type="mmseg.LoadAnnotations"),
    dict(type="mmseg.PackSegInputs"),
]
sampler = dict(type="InfiniteSampler", shuffle=True)
train_dataloader = dict(
    sampler=dict(_delete_=True, **sampler), dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_evaluator = dict(_delete_=True, type="mmseg.IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
train_cfg = dict(type="mmengine.IterBasedTrainLoop")
