# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegFormer-B0, CamVid: from scratch, sized for two CPU cores.
_base_ = [
    "_base_/models/segformer_mitb0.py",
    "_base_/datasets/camvid_small.py",
    "_base_/schedules/scratch_camvid_small.py",
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(init_cfg=None),
    decode_head=dict(
        num_classes=_base_.num_classes,
        loss_decode=dict(class_weight=_base_.class_weights),
    ),
)
