# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegFormer-B0.
_base_ = "segformer.py"
model = dict(
    backbone=dict(
        embed_dims=32, num_layers=[2, 2, 2, 2], init_cfg=dict(checkpoint="openmmlab/mit_b0")
    ),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
)
