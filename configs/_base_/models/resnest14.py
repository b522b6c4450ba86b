# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# resnest14, output stride 8, from scratch.
backbone = dict(
    type="ResNeSt",
    arch="resnest14",
    output_stride=8,
    norm_cfg=dict(type="SyncBN", requires_grad=True),
)
