# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MMDetection's recipe: 12 epochs of 117,266 images, learning rate 0.02 for 16 images and a tenth of
# it after the 8th and the 11th; from a thousandth over 500 iterations; norms decay, too.
_base_ = "runtime.py"
total_batch_size, train_images = 16, 117266
epoch = train_images // total_batch_size
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4)
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
train_cfg = dict(max_iters=12 * epoch, val_interval=epoch)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, begin=0, end=500, by_epoch=False),
    dict(
        type="MultiStepLR",
        milestones=[8 * epoch, 11 * epoch],
        gamma=0.1,
        begin=0,
        end=12 * epoch,
        by_epoch=False,
    ),
]
default_hooks = dict(checkpoint=dict(interval=epoch))
