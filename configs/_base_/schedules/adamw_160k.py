# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegFormer's and SegNeXt's recipe: 160,000 iterations at a total batch of 16, AdamW, linear warm-up,
# linear decay to zero, the head at ten times the learning rate, no decay of norms.
_base_ = "published.py"
total_batch_size = 16
auto_scale_lr = dict(base_batch_size=16)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(
            pos_block=dict(decay_mult=0.0), norm=dict(decay_mult=0.0), head=dict(lr_mult=10.0)
        )
    ),
)
max_iters, warmup_iters = 160_000, 1500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 10)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=warmup_iters, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=warmup_iters, end=max_iters, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=max_iters // 10))
