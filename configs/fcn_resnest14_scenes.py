# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# FCN, ResNeSt-14, the built-in demo scenes: what `make demo` trains.
_base_ = [
    "_base_/models/fcn_skip.py",
    "_base_/models/resnest14.py",
    "_base_/datasets/scenes.py",
    "_base_/schedules/scratch_scenes.py",
]
# (1 / share of the training pixels) ** 0.5, mean 1 over pixels: people, lamps and signs are rare
weights = [0.96, 0.72, 0.78, 1.27, 1.15, 0.7, 1.16, 1.54, 1.32, 1.93, 1.96, 2.53]
model = dict(
    backbone=dict(_base_.backbone, output_stride=32),
    decode_head=dict(num_classes=_base_.num_classes, loss_decode=dict(class_weight=weights)),
    auxiliary_head=dict(channels=64, num_classes=_base_.num_classes),
)
