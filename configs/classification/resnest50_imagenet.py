# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# ResNeSt-50, ImageNet: published top-1 81.03 at 224.
_base_ = "_base_/batch_8192.py"
model = dict(backbone=dict(arch="resnest50"))
