# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# CamVid in small crops, for a CPU.
_base_ = "camvid.py"
crop_size = (240, 240)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomLongEdgeResize", base_size=_base_.base_size, ratio_range=(0.5, 1.0)),
    dict(type="Pad", size=crop_size, pad_val=dict(img=0, seg=255)),
    dict(type="RandomCrop", crop_size=crop_size),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=8, num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=2)
test_dataloader = val_dataloader
