# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Pascal Context: 4,998 / 5,105 images, 59 classes, 0 = background, which is not evaluated.
_base_ = "published.py"
num_classes = 59
dataset = dict(
    type="PascalContextDataset59",
    data_root="{{$MMSEG_RESNEST_DATA:data}}/pascal_context/VOCdevkit/VOC2010",
    data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext"),
)
train_file = "ImageSets/SegmentationContext/train.txt"
val_file = "ImageSets/SegmentationContext/val.txt"
train_dataloader = dict(dataset=dict(ann_file=train_file, **dataset))
val_dataloader = dict(dataset=dict(ann_file=val_file, **dataset))
test_dataloader = val_dataloader
