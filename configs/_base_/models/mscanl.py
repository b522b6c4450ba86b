# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MSCAN-L and the width of SegNeXt's head, starting from the zoo's ImageNet weights.
backbone = dict(
    type="MSCAN",
    embed_dims=[64, 128, 320, 512],
    depths=[3, 5, 27, 3],
    mlp_ratios=[8, 8, 4, 4],
    drop_path_rate=0.3,
    norm_cfg=dict(type="SyncBN", requires_grad=True),
    init_cfg=dict(type="Pretrained", checkpoint="openmmlab/mscan_l"),
)
decode_head = dict(
    in_channels=[128, 320, 512], channels=1024, ham_channels=1024, ham_kwargs=dict(MD_R=16)
)
