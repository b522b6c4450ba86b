# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# UPerNet (MMSegmentation's head), output stride 32, with the published training.
_base_ = "fcn.py"
model = dict(
    decode_head=dict(
        _delete_=True,
        type="UPerHead",
        in_channels=[256, 512, 1024, 2048],
        in_index=[0, 1, 2, 3],
        channels=512,
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        norm_cfg=_base_.norm_cfg,
        align_corners=True,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
    ),
)
