# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# Mask R-CNN: Faster R-CNN with a mask head of four convolutions with synchronised batch norm.
_base_ = "faster_rcnn.py"
model = dict(
    type="mmdet.MaskRCNN",
    data_preprocessor=dict(pad_mask=True),
    roi_head=dict(mask_roi_extractor=_base_.mask_roi_extractor, mask_head=_base_.mask_head),
    train_cfg=dict(rcnn=dict(mask_size=28)),
    test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
