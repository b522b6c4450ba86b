# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# The baseline without split attention: ResNet-50 with the deep stem, output stride 8.
backbone = dict(
    type="ResNetV1c",
    depth=50,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    dilations=(1, 1, 2, 4),
    strides=(1, 2, 1, 1),
    norm_cfg=dict(type="SyncBN", requires_grad=True),
    norm_eval=False,
    style="pytorch",
    contract_dilation=True,
    init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://resnet50_v1c"),
)
