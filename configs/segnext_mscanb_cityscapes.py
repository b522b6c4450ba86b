# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegNeXt-B, Cityscapes: its authors say 82.6 / 83.8 mIoU (single / multi-scale).
_base_ = [
    "_base_/models/segnext_mscanb.py",
    "_base_/datasets/openmmlab_cityscapes_1024x1024.py",
    "_base_/schedules/adamw_160k_batch8.py",
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
    test_cfg=dict(mode="slide", crop_size=_base_.crop_size, stride=(768, 768)),
)
