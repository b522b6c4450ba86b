# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MSCAN-T and the width of SegNeXt's head, starting from the zoo's ImageNet weights.
backbone = dict(
    type="MSCAN",
    embed_dims=[32, 64, 160, 256],
    depths=[3, 3, 5, 2],
    mlp_ratios=[8, 8, 4, 4],
    drop_path_rate=0.1,
    norm_cfg=dict(type="SyncBN", requires_grad=True),
    init_cfg=dict(type="Pretrained", checkpoint="openmmlab/mscan_t"),
)
decode_head = dict(
    in_channels=[64, 160, 256], channels=256, ham_channels=256, ham_kwargs=dict(MD_R=16)
)
