# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# VOC 2012 with the SBD labels: 10,582 / 1,449 images, 21 classes, 255 = border.
_base_ = "published.py"
num_classes = 21
dataset = dict(
    type="PascalVOCDataset", data_root="{{$MMSEG_RESNEST_DATA:data}}/voc2012/VOCdevkit/VOC2012"
)
# As published, the padding's label is 0, which is background here (elsewhere it is ignored).
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomLongEdgeResize", base_size=_base_.base_size, ratio_range=(0.5, 2.0)),
    dict(type="Pad", size=_base_.crop_size[::-1], pad_val=dict(img=0, seg=0)),
    dict(type="RandomCrop", crop_size=_base_.crop_size),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassAug"),
        ann_file="ImageSets/Segmentation/trainaug.txt",
        pipeline=train_pipeline,
        **dataset,
    )
)
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        ann_file="ImageSets/Segmentation/val.txt",
        **dataset,
    )
)
test_dataloader = val_dataloader
