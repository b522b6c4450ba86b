# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegNeXt-L.
_base_ = "segnext.py"
model = dict(
    backbone=dict(
        embed_dims=[64, 128, 320, 512],
        depths=[3, 5, 27, 3],
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="openmmlab/mscan_l"),
    ),
    decode_head=dict(in_channels=[128, 320, 512], channels=1024, ham_channels=1024),
)
