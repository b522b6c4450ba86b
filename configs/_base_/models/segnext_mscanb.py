# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegNeXt-B.
_base_ = "segnext.py"
model = dict(
    backbone=dict(
        embed_dims=[64, 128, 320, 512],
        depths=[3, 3, 12, 3],
        init_cfg=dict(checkpoint="openmmlab/mscan_b"),
    ),
    decode_head=dict(in_channels=[128, 320, 512], channels=512, ham_channels=512),
)
