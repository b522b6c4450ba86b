# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# CamVid from scratch, within 25 minutes on two cores.
_base_ = "scratch_scenes.py"
max_iters, warmup_iters, val_interval = 850, 50, 285
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=warmup_iters, by_epoch=False),
    dict(
        type="PolyLR", power=0.9, eta_min=0.0, begin=warmup_iters, end=max_iters + 1, by_epoch=False
    ),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=val_interval))
