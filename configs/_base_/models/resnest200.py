# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# resnest200, output stride 8, starting from the published ImageNet weights.
backbone = dict(
    type="ResNeSt",
    arch="resnest200",
    output_stride=8,
    norm_cfg=dict(type="SyncBN", requires_grad=True),
    init_cfg=dict(type="Pretrained", checkpoint="resnest200"),
)
