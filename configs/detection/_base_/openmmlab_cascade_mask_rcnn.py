# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# MMDetection's own Cascade Mask R-CNN with a ResNeSt.
_base_ = "openmmlab_cascade_rcnn.py"
model = dict(
    data_preprocessor=dict(pad_mask=True),
    roi_head=dict(mask_roi_extractor=_base_.mask_roi_extractor, mask_head=_base_.mask_head),
    test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
