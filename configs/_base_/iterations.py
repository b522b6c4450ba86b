# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# What every training shares: a loop over iterations, and what it logs and saves.
_base_ = "default_runtime.py"
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
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    nonfinite=dict(type="NonFiniteHook", on_nonfinite="stop"),
)
