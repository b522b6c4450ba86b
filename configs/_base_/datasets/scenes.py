# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# The built-in demo scenes, 160x128, 12 classes, 0 = unlabelled.
_base_ = "published.py"
num_classes, base_size, crop_size = 12, 160, (96, 96)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomCrop", crop_size=crop_size),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
dataset = dict(type="ScenesDataset", data_root="{{$MMSEG_RESNEST_SCENES:data/scenes}}")
train_prefix = dict(img_path="images/training", seg_map_path="annotations/training")
val_prefix = dict(img_path="images/validation", seg_map_path="annotations/validation")
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(data_prefix=train_prefix, pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    num_workers=2, dataset=dict(data_prefix=val_prefix, pipeline=test_pipeline, **dataset)
)
test_dataloader = val_dataloader
tta_model = dict(base_size=base_size, crop_size=crop_size[0])
