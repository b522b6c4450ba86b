# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# SegNeXt (arXiv 2209.08575); segnext_mscan*.py set its size. The head factors its features by matrix
# decomposition, from random bases in training and fixed ones in evaluation.
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type="MSCAN",
        mlp_ratios=[8, 8, 4, 4],
        drop_path_rate=0.1,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        init_cfg=dict(type="Pretrained"),
    ),
    decode_head=dict(
        type="LightHamHead",
        in_index=[1, 2, 3],
        ham_kwargs=dict(MD_R=16),
        dropout_ratio=0.1,
        norm_cfg=dict(type="GN", num_groups=32, requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
