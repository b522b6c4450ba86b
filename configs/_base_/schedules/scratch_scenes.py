# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# The demo: from scratch in minutes on two cores.
_base_ = "published.py"
total_batch_size = 8
auto_scale_lr = dict(base_batch_size=8)
max_iters, warmup_iters, val_interval = 450, 30, 225
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.003, weight_decay=0.05, fused=True),
)
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=warmup_iters, by_epoch=False),
    dict(
        type="PolyLR", power=0.9, eta_min=0.0, begin=warmup_iters, end=max_iters + 1, by_epoch=False
    ),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=val_interval))
