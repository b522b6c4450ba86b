# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# ResNeSt-200, ImageNet: published top-1 83.84 at 320, trained at 256.
_base_ = "_base_/batch_2048.py"
model = dict(backbone=dict(arch="resnest200"), head=dict(dropout=0.2))
train_pipeline = [
    *(_base_.load, _base_.augment, dict(_base_.train_crop, scale=256)),
    *(*_base_.after_crop, _base_.pack),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_pipeline = [_base_.load, dict(_base_.test_crop, crop_size=320), _base_.pack]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
