# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# The same recipe at a total batch of 8, as published for Cityscapes.
_base_ = "adamw_160k.py"
total_batch_size = 8
auto_scale_lr = dict(base_batch_size=8)
