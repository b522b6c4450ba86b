# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Cityscapes fine: 2,975 / 500 images, 19 classes. Label files *_gtFine_labelTrainIds.png.
_base_ = "published.py"
num_classes = 19
dataset = dict(type="CityscapesDataset", data_root="{{$MMSEG_RESNEST_DATA:data}}/cityscapes")
train_prefix = dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train")
val_prefix = dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val")
train_dataloader = dict(dataset=dict(data_prefix=train_prefix, **dataset))
val_dataloader = dict(dataset=dict(data_prefix=val_prefix, **dataset))
test_dataloader = val_dataloader
# The published scales of this data set.
tta_model = dict(scales=(0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25))
