# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# CamVid, 480x360: 367 / 101 / 233 images, 11 classes and void, which is ignored.
_base_ = "published.py"
num_classes, base_size, crop_size = 11, 480, (360, 360)
# (1 / share of the training pixels) ** 0.5, mean 1 over pixels
class_weights = [0.9, 0.75, 3.7, 0.64, 1.71, 1.16, 3.52, 3.64, 1.56, 4.6, 7.87]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomLongEdgeResize", base_size=base_size, ratio_range=(0.5, 2.0)),
    dict(type="Pad", size=crop_size[::-1], pad_val=dict(img=0, seg=255)),
    dict(type="RandomCrop", crop_size=crop_size),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(base_size, base_size), keep_ratio=True, backend="pillow"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
dataset = dict(type="CamVidDataset", data_root="{{$MMSEG_RESNEST_DATA:data}}/camvid")
train_prefix = dict(img_path="train", seg_map_path="trainannot")
val_prefix = dict(img_path="val", seg_map_path="valannot")
train_dataloader = dict(dataset=dict(data_prefix=train_prefix, pipeline=train_pipeline, **dataset))
val_dataloader = dict(dataset=dict(data_prefix=val_prefix, pipeline=test_pipeline, **dataset))
# The validation images: the 233 test images are for a final result only. To use them:
# --cfg-options test_dataloader.dataset.data_prefix.img_path=test
# test_dataloader.dataset.data_prefix.seg_map_path=testannot
test_dataloader = val_dataloader
tta_model = dict(base_size=base_size, crop_size=crop_size[0])
