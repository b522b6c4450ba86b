# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# The ResNeSt authors' recipe: 90,000 iterations of 16 images, learning rate 0.02 and a tenth of it
# after 60,000 and 80,000; from a thousandth over 1,000 iterations; no decay of norms; precise batch
# norm over 200 iterations before each evaluation.
_base_ = "runtime.py"
total_batch_size, max_iters, val_interval = 16, 90000, 5000
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
# LinearLR reaches its end at end - 1.
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, begin=0, end=1001, by_epoch=False),
    dict(
        type="MultiStepLR",
        milestones=[60000, 80000],
        gamma=0.1,
        begin=0,
        end=max_iters,
        by_epoch=False,
    ),
]
default_hooks = dict(checkpoint=dict(interval=val_interval))
custom_hooks = [dict(type="PreciseBNHook", num_iters=200)]
