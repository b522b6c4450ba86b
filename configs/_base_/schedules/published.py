# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# The published recipe (PyTorch-Encoding) but for its length, which each data set's file sets.
# Learning rate at iteration i of N: lr * (1 - i / N) ** 0.9, heads at ten times that, no warm-up.
_base_ = "../iterations.py"
total_batch_size = 16  # over all processes; tools/train.py shares it out
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys=dict(decode_head=dict(lr_mult=10.0), auxiliary_head=dict(lr_mult=10.0))
    ),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(save_best="mIoU"))
