# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MMSegmentation's schedule of 160,000 iterations at a total batch of 16.
_base_ = "published.py"
total_batch_size = 16
auto_scale_lr = dict(base_batch_size=16)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4),
)
max_iters = 160_000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 10)
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=1e-4, begin=0, end=max_iters, by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=max_iters // 10))
