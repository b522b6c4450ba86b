# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Published DeepLabV3.
_base_ = "fcn.py"
model = dict(
    decode_head=dict(
        _delete_=True,
        type="DeepLabV3Head",
        in_channels=2048,
        in_index=3,
        channels=256,
        dilations=(12, 24, 36),
        dropout_ratio=0.1,
        norm_cfg=_base_.norm_cfg,
        align_corners=True,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
    ),
)
