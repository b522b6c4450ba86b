# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# The drawn shapes, 160x128, four classes, at their own size.
_base_ = "coco.py"
num_classes = 4
data_root = "{{$MMSEG_RESNEST_DATA:data}}/shapes"
shapes = dict(classes=("disc", "square", "triangle", "cross"))
train_pipeline = [*_base_.load, *_base_.flip_and_pack]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(_base_.test_pipeline[1], scale=(160, 128)),
    *_base_.test_pipeline[2:],
]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(data_root=data_root, metainfo=shapes, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=2,
    dataset=dict(data_root=data_root, metainfo=shapes, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f"{data_root}/annotations/instances_val2017.json")
test_evaluator = val_evaluator
