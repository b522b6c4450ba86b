# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegNeXt-S.
_base_ = "segnext.py"
model = dict(
    backbone=dict(
        embed_dims=[64, 128, 320, 512],
        depths=[2, 2, 4, 2],
        init_cfg=dict(checkpoint="openmmlab/mscan_s"),
    ),
    decode_head=dict(in_channels=[128, 320, 512], channels=256, ham_channels=256),
)
