# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# FCN, ResNeSt-14, the built-in demo scenes: what `make demo` trains.
_base_ = [
    "_base_/models/fcn.py",
    "_base_/models/resnest14.py",
    "_base_/datasets/scenes.py",
    "_base_/schedules/scratch_scenes.py",
]
model = dict(
    backbone=dict(_base_.backbone, output_stride=16),
    decode_head=dict(channels=128, num_classes=_base_.num_classes),
    auxiliary_head=dict(channels=64, num_classes=_base_.num_classes),
)
