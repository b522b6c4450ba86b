# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# ADE20K SceneParsing: 20,210 / 2,000 images, 150 classes, 0 = unlabelled.
_base_ = "published.py"
num_classes = 150
dataset = dict(
    type="ADE20KDataset", data_root="{{$MMSEG_RESNEST_DATA:data}}/ade20k/ADEChallengeData2016"
)
train_prefix = dict(img_path="images/training", seg_map_path="annotations/training")
val_prefix = dict(img_path="images/validation", seg_map_path="annotations/validation")
train_dataloader = dict(dataset=dict(data_prefix=train_prefix, **dataset))
val_dataloader = dict(dataset=dict(data_prefix=val_prefix, **dataset))
test_dataloader = val_dataloader
