# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Batches of 2048 images in all, learning rate 0.8: from 0 over 5 epochs, then a cosine to 0.
_base_ = "imagenet.py"
total_batch_size, peak = 2048, 0.8
iters_per_epoch = _base_.train_images // total_batch_size
max_iters = _base_.epochs * iters_per_epoch
warm_up = _base_.warm_up_epochs * iters_per_epoch
train_dataloader = dict(batch_size=total_batch_size)
auto_scale_lr = dict(enable=False, base_batch_size=total_batch_size)
optim_wrapper = dict(optimizer=dict(lr=peak))
train_cfg = dict(max_iters=max_iters, val_interval=5 * iters_per_epoch)
# LinearLR multiplies, so that it cannot begin at 0 itself; it reaches its end at end - 1.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-12, begin=0, end=warm_up + 1, by_epoch=False),
    dict(
        type="CosineAnnealingLR",
        T_max=max_iters - warm_up,
        begin=warm_up,
        end=max_iters,
        by_epoch=False,
    ),
]
default_hooks = dict(checkpoint=dict(interval=iters_per_epoch))
