# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# From scratch in minutes on two cores.
_base_ = "runtime.py"
total_batch_size, max_iters, warm_up, val_interval = 8, 400, 40, 200
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.001, weight_decay=0.05, fused=True)
)
auto_scale_lr = dict(enable=False, base_batch_size=8)
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=warm_up, by_epoch=False),
    dict(type="PolyLR", power=0.9, eta_min=0.0, begin=warm_up, end=max_iters + 1, by_epoch=False),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=val_interval))
