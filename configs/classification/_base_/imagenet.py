# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# ImageNet by the published recipe (PyTorch-Encoding); batch_*.py set its length and learning rate.
_base_ = "../../_base_/iterations.py"
custom_imports = dict(imports=["mmseg_resnest.models.classification"], allow_failed_imports=False)
train_images, num_classes = 1281167, 1000
model = dict(
    type="mmpretrain.ImageClassifier",
    data_preprocessor=dict(
        type="MixupDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
        mixup=0.2,
        num_classes=num_classes,
    ),
    backbone=dict(
        type="ResNeSt",
        arch="resnest50",
        output_stride=32,
        out_indices=(3,),
        zero_init_residual=True,
        dropblock_prob=0.1,
        dropblock_size=3,
    ),
    neck=dict(type="mmpretrain.GlobalAveragePooling"),
    head=dict(
        type="DropoutClsHead",
        num_classes=num_classes,
        in_channels=2048,
        dropout=0.0,
        loss=dict(type="mmpretrain.LabelSmoothLoss", label_smooth_val=0.1),
        init_cfg=None,
    ),
)

# RandAugment(2, 12): two of these, at 12 of 30 of their ranges, each with probability 0.5.
turns = dict(prob=0.5, random_negative_prob=0.5)
grows = dict(prob=0.5, random_negative_prob=0.0, magnitude_range=(-0.9, 0.9))
policies = [
    dict(type="mmpretrain.AutoContrast", prob=0.5),
    dict(type="mmpretrain.Equalize", prob=0.5),
    dict(type="mmpretrain.Invert", prob=0.5),
    dict(type="mmpretrain.Rotate", magnitude_range=(0, 30), pad_val=0, **turns),
    # The published one rounds 4 * 12 / 30 bits down to 1, MMPretrain rounds up.
    dict(type="mmpretrain.Posterize", magnitude_range=(0, 2.5), prob=0.5),
    dict(type="mmpretrain.Solarize", magnitude_range=(0, 256), prob=0.5),
    dict(type="mmpretrain.SolarizeAdd", magnitude_range=(0, 110), prob=0.5),
    dict(type="mmpretrain.ColorTransform", **grows),
    dict(type="mmpretrain.Contrast", **grows),
    dict(type="mmpretrain.Brightness", **grows),
    dict(type="mmpretrain.Sharpness", **grows),
    # Blue, green, red of ImageNet's mean.
    dict(type="mmpretrain.Cutout", magnitude_range=(0, 40), pad_val=(114, 123, 125), prob=0.5),
    *(
        dict(magnitude_range=(0, 0.3), pad_val=0, direction=way, **kind, **turns)
        for kind in (
            dict(type="mmpretrain.Shear"),
            dict(type="mmpretrain.Translate", interpolation="bicubic"),
        )
        for way in ("horizontal", "vertical")
    ),
]
load = dict(type="LoadImageFromFile")
augment = dict(
    type="mmpretrain.RandAugment",
    policies=policies,
    num_policies=2,
    magnitude_level=12,
    total_level=30,
)
train_crop = dict(
    type="mmpretrain.EfficientNetRandomCrop",
    scale=224,
    crop_ratio_range=(0.1, 1.0),
    aspect_ratio_range=(3 / 4, 4 / 3),
    interpolation="bilinear",
    backend="pillow",
)
after_crop = [
    dict(type="RandomFlip", prob=0.5),
    dict(type="mmpretrain.ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4),
    # The components of ImageNet's colours; images are blue, green, red.
    dict(
        type="mmpretrain.Lighting",
        eigval=[55.4625, 4.7940, 1.1475],
        eigvec=[
            [-0.5836, -0.6948, 0.4203],
            [-0.5808, -0.0045, -0.8140],
            [-0.5675, 0.7192, 0.4009],
        ],
        alphastd=0.1,
    ),
]
pack = dict(type="mmpretrain.PackInputs")
test_crop = dict(
    type="mmpretrain.EfficientNetCenterCrop",
    crop_size=224,
    interpolation="bicubic",
    backend="pillow",
)
train_pipeline = [load, augment, train_crop, *after_crop, pack]
test_pipeline = [load, test_crop, pack]
dataset = dict(type="ImageFolder", data_root="{{$MMSEG_RESNEST_DATA:data}}/imagenet")
train_dataloader = dict(
    num_workers=16,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="ExactSampler"),
    dataset=dict(split="train", pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=16,
    persistent_workers=True,
    collate_fn=dict(type="default_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(split="val", pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="mmpretrain.Accuracy", topk=(1, 5))
test_evaluator = val_evaluator

# LinearLR multiplies, so that it cannot begin at 0 itself; it reaches its end at end - 1.
warm_up = dict(type="LinearLR", start_factor=1e-12, begin=0, by_epoch=False)
cosine = dict(type="CosineAnnealingLR", by_epoch=False)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
custom_hooks = [dict(type="DropBlockHook")]
