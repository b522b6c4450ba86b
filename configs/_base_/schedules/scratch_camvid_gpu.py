# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# CamVid from scratch in minutes on one GPU.
_base_ = "scratch_camvid.py"
max_iters, warmup_iters, val_interval = 8000, 300, 800
optim_wrapper = dict(type="BFloat16OptimWrapper", clip_grad=dict(max_norm=5.0))
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=warmup_iters, by_epoch=False),
    dict(
        type="PolyLR", power=0.9, eta_min=0.0, begin=warmup_iters, end=max_iters + 1, by_epoch=False
    ),
]
# Validated and saved is a mean of the weights, of the last 500 iterations or so; of fewer at first.
custom_hooks = [
    dict(
        type="EMAHook",
        ema_type="MomentumAnnealingEMA",
        momentum=0.02,
        gamma=100,
        interval=10,  # each update waits for the GPU
        update_buffers=True,
    )
]
default_hooks = dict(
    checkpoint=dict(interval=val_interval, max_keep_ckpts=1),
    nonfinite=dict(on_nonfinite="skip"),  # nobody watches a run of minutes
)
