# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# COCO 2017, boxes: short edge 640 to 800 in training and 800 in tests, long edge at most 1333.
num_classes = 80
data_root = "{{$MMSEG_RESNEST_DATA:data}}/coco"
load = [dict(type="LoadImageFromFile"), dict(type="mmdet.LoadAnnotations", with_bbox=True)]
resize = dict(
    type="RandomResize",
    scale=[(1333, 640), (1333, 800)],
    resize_type="mmdet.Resize",
    keep_ratio=True,
)
flip_and_pack = [dict(type="mmdet.RandomFlip", prob=0.5), dict(type="mmdet.PackDetInputs")]
train_pipeline = [*load, resize, *flip_and_pack]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmdet.Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="mmdet.LoadAnnotations", with_bbox=True),
    dict(
        type="mmdet.PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="ExactSampler"),
    dataset=dict(
        type="mmdet.CocoDataset",
        data_root=data_root,
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="mmdet.CocoDataset",
        data_root=data_root,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="mmdet.CocoMetric",
    ann_file=f"{data_root}/annotations/instances_val2017.json",
    metric=["bbox"],
)
test_evaluator = val_evaluator
