# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# DeepLabV3+ (MMSegmentation's head) with the published training.
_base_ = "fcn.py"
model = dict(
    decode_head=dict(
        _delete_=True,
        type="DepthwiseSeparableASPPHead",
        in_channels=2048,
        in_index=3,
        channels=512,
        dilations=(1, 12, 24, 36),
        c1_in_channels=256,
        c1_channels=48,
        dropout_ratio=0.1,
        norm_cfg=_base_.norm_cfg,
        align_corners=True,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
    ),
)
