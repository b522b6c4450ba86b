# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# GluonCV 0.7's recipe: 26 epochs of 117,266 images, learning rate 0.02 for 16 images and a tenth of
# it after epochs 20 and 24; from a third over 500 iterations.
_base_ = "runtime.py"
total_batch_size, train_images, warm_up = 16, 117266, 500
epoch = train_images // total_batch_size
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4)
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
train_cfg = dict(max_iters=26 * epoch, val_interval=epoch)
# LinearLR reaches its end at end - 1.
param_scheduler = [
    dict(type="LinearLR", start_factor=1 / 3, begin=0, end=warm_up + 1, by_epoch=False),
    dict(
        type="MultiStepLR",
        milestones=[20 * epoch, 24 * epoch],
        gamma=0.1,
        begin=0,
        end=26 * epoch,
        by_epoch=False,
    ),
]
default_hooks = dict(checkpoint=dict(interval=epoch))
