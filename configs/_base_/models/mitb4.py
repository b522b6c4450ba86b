# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MiT-B4, SegFormer's backbone, starting from the zoo's ImageNet weights (not for commercial use).
backbone = dict(
    type="MixVisionTransformer",
    embed_dims=64,
    num_layers=[3, 8, 27, 3],
    num_heads=[1, 2, 5, 8],
    drop_path_rate=0.1,
    init_cfg=dict(type="Pretrained", checkpoint="openmmlab/mit_b4"),
)
decode_head = dict(in_channels=[64, 128, 320, 512])
