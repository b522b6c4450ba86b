# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# ResNeSt-14, ImageNet, without DropBlock: top-1 75.75 at 224 (GluonCV's).
_base_ = "_base_/batch_1024.py"
model = dict(backbone=dict(arch="resnest14", dropblock_prob=0.0))
optim_wrapper = dict(optimizer=dict(nesterov=True))
