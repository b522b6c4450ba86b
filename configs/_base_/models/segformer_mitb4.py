# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegFormer-B4.
_base_ = "segformer.py"
model = dict(
    backbone=dict(
        embed_dims=64, num_layers=[3, 8, 27, 3], init_cfg=dict(checkpoint="openmmlab/mit_b4")
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
)
