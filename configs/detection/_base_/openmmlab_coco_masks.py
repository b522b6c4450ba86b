# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# COCO 2017, boxes and masks, as MMDetection trains its ResNeSts: one of six short edges.
_base_ = "coco_masks.py"
resize = dict(
    type="RandomChoiceResize",
    scales=[(1333, edge) for edge in range(640, 801, 32)],
    resize_type="mmdet.Resize",
    keep_ratio=True,
)
train_pipeline = [*_base_.load, resize, *_base_.flip_and_pack]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
