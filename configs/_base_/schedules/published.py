# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# The published recipe (PyTorch-Encoding) but for its length, which each data set's file sets.
# Learning rate at iteration i of N: lr * (1 - i / N) ** 0.9, heads at ten times that, no warm-up.
_base_ = "../default_runtime.py"
total_batch_size = 16  # over all processes; tools/train.py shares it out
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys=dict(decode_head=dict(lr_mult=10.0), auxiliary_head=dict(lr_mult=10.0))
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
train_cfg = dict(type="IterBasedTrainLoop")
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(
        type="CheckpointHook",
        by_epoch=False,
        max_keep_ckpts=3,
        save_last=True,
        save_best="mIoU",
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    nonfinite=dict(type="NonFiniteHook", on_nonfinite="stop"),
)
