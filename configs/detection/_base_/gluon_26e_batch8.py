# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# GluonCV's recipe for its largest model: 8 images, learning rate 0.01, 1,000 iterations to it.
_base_ = "gluon_26e.py"
total_batch_size, warm_up = 8, 1000
epoch = _base_.train_images // total_batch_size
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=8)
train_cfg = dict(max_iters=26 * epoch, val_interval=epoch)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warm_up + 1),
    dict(_base_.param_scheduler[1], milestones=[20 * epoch, 24 * epoch], end=26 * epoch),
]
default_hooks = dict(checkpoint=dict(interval=epoch))
