# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# ResNeSt-26, ImageNet, by the recipe of ResNeSt-14: top-1 78.68 at 224 (GluonCV's).
_base_ = "_base_/batch_1024.py"
model = dict(backbone=dict(arch="resnest26", dropblock_prob=0.0))
optim_wrapper = dict(optimizer=dict(nesterov=True))
