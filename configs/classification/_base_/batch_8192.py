# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Batches of 8192 images in all, learning rate 3.2: 270 epochs, from 0 over 5, then a cosine to 0.
_base_ = "imagenet.py"
total_batch_size, rate = 8192, 3.2
epoch = _base_.train_images // total_batch_size  # iterations
train_dataloader = dict(batch_size=total_batch_size)
auto_scale_lr = dict(enable=False, base_batch_size=total_batch_size)
optim_wrapper = dict(optimizer=dict(lr=rate))
train_cfg = dict(max_iters=270 * epoch, val_interval=5 * epoch)
param_scheduler = [
    dict(_base_.warm_up, end=5 * epoch + 1),
    dict(_base_.cosine, T_max=265 * epoch, begin=5 * epoch, end=270 * epoch),
]
default_hooks = dict(checkpoint=dict(interval=epoch))
