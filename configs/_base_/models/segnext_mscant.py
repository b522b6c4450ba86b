# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegNeXt-T.
_base_ = "segnext.py"
model = dict(
    backbone=dict(
        embed_dims=[32, 64, 160, 256],
        depths=[3, 3, 5, 2],
        init_cfg=dict(checkpoint="openmmlab/mscan_t"),
    ),
    decode_head=dict(in_channels=[64, 160, 256], channels=256, ham_channels=256),
)
