# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Published EncNet, with its semantic encoding loss.
_base_ = "fcn.py"
model = dict(
    decode_head=dict(
        _delete_=True,
        type="PublishedEncHead",
        in_channels=(512, 1024, 2048),
        in_index=(1, 2, 3),
        channels=512,
        num_codes=32,
        use_se_loss=True,
        add_lateral=False,
        dropout_ratio=0.1,
        norm_cfg=_base_.norm_cfg,
        align_corners=True,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
        loss_se_decode=dict(
            type="CrossEntropyLoss", use_sigmoid=True, loss_weight=0.2, avg_non_ignore=True
        ),
    ),
)
