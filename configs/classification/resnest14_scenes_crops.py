# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# ResNeSt-14, crops of the built-in scenes (mmseg-resnest classify crops): minutes on two CPU cores.
_base_ = "_base_/imagenet.py"
num_classes, size, total_batch_size, iterations = 9, 48, 32, 300
model = dict(
    data_preprocessor=dict(num_classes=num_classes, mixup=0.0),
    backbone=dict(arch="resnest14", dropblock_prob=0.0),
    head=dict(num_classes=num_classes),
)
train_pipeline = [
    _base_.load,
    dict(_base_.train_crop, scale=size, crop_ratio_range=(0.5, 1.0)),
    *(dict(type="RandomFlip", prob=0.5), _base_.pack),
]
test_pipeline = [_base_.load, dict(_base_.test_crop, crop_size=size, crop_padding=0), _base_.pack]
train_dataloader = dict(
    batch_size=total_batch_size,
    num_workers=2,
    dataset=dict(data_root="data/scenes_crops", pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=2, dataset=dict(data_root="data/scenes_crops", pipeline=test_pipeline)
)
test_dataloader = val_dataloader
auto_scale_lr = dict(enable=False, base_batch_size=total_batch_size)
optim_wrapper = dict(optimizer=dict(lr=0.05))
train_cfg = dict(max_iters=iterations, val_interval=100)
param_scheduler = [
    dict(_base_.warm_up, end=31),
    dict(_base_.cosine, T_max=iterations - 30, begin=30, end=iterations),
]
default_hooks = dict(checkpoint=dict(interval=100))
