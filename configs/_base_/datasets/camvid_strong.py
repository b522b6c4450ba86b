# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# CamVid at its own size with strong augmentation, for training from scratch on a GPU.
_base_ = "camvid.py"
crop_size = (360, 480)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomLongEdgeResize", base_size=480, ratio_range=(0.5, 2.0)),
    dict(type="RandomRotate", prob=0.5, degree=10.0, pad_val=0, seg_pad_val=255),
    dict(type="Pad", size=crop_size[::-1], pad_val=dict(img=0, seg=255)),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(num_workers=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=4)
test_dataloader = dict(num_workers=4)
