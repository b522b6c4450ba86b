# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Published augmentation and evaluation; each data set's file says where its files are.
base_size, crop_size = 520, (480, 480)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomLongEdgeResize", base_size=base_size, ratio_range=(0.5, 2.0)),
    # Pad takes (width, height), RandomCrop (height, width).
    dict(type="Pad", size=crop_size[::-1], pad_val=dict(img=0, seg=255)),
    dict(type="RandomCrop", crop_size=crop_size),
    dict(type="PackSegInputs"),
]
# Single scale: the whole image with its long edge at the base size, filtered as in training;
# scores are resized back, so that predictions have the image's own size.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(base_size, base_size), keep_ratio=True, backend="pillow"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
# Multi-scale (tools/test.py --tta): the model itself resizes, mirrors and slides.
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_model = dict(
    type="MultiScaleGridTTA",
    scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    flip=True,
    base_size=base_size,
    crop_size=crop_size[0],
)
train_dataloader = dict(
    batch_size=16,  # the total; tools/train.py divides it by the number of processes
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="ExactSampler", shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="SegmentationMetric")
test_evaluator = val_evaluator
