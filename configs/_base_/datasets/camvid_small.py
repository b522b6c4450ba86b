# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# CamVid at 0.8 of its size in small crops, for a CPU; scores have the image's own size.
_base_ = "camvid.py"
base_size, crop_size = 384, (192, 256)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomLongEdgeResize", base_size=base_size, ratio_range=(0.7, 1.35)),
    dict(type="Pad", size=crop_size[::-1], pad_val=dict(img=0, seg=255)),
    dict(type="RandomCrop", crop_size=crop_size),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(base_size, base_size), keep_ratio=True, backend="pillow"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=8, num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=2, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
tta_model = dict(base_size=base_size, crop_size=crop_size[1])
