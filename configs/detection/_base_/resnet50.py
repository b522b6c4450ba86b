# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# The baseline without split attention: ResNet-50 as detectron2 has it (blue, green, red; stride in
# the first convolution of a block), frozen and synchronised as the ResNeSt detectors.
backbone = dict(
    type="mmdet.ResNet",
    depth=50,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    norm_cfg=dict(type="SyncBN", requires_grad=True),
    norm_eval=False,
    style="caffe",
    init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://detectron2/resnet50_caffe"),
)
pixels = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
