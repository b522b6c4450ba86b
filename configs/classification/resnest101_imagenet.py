# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# ResNeSt-101, ImageNet: published top-1 82.83 at 256, trained at 224.
_base_ = "_base_/batch_4096.py"
model = dict(backbone=dict(arch="resnest101"))
test_pipeline = [_base_.load, dict(_base_.test_crop, crop_size=256), _base_.pack]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
