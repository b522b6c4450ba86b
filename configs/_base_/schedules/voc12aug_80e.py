# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# VOC 2012 augmented: 80 epochs of 10582 images.
_base_ = "published.py"
epochs, train_images = 80, 10582
iters_per_epoch = train_images // _base_.total_batch_size
max_iters = epochs * iters_per_epoch
train_cfg = dict(max_iters=max_iters, val_interval=10 * iters_per_epoch)
# PolyLR reaches eta_min at iteration end - 1.
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=max_iters + 1, by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=10 * iters_per_epoch))
optim_wrapper = dict(optimizer=dict(lr=0.001))
