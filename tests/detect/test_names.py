# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMDetection finds our backbone, and our scope finds MMDetection's parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmseg_resnest.models import ResNeSt

BACKBONE = dict(arch="resnest14", output_stride=32)


def detector(prefix: str, backbone: str) -> dict[str, Any]:
    """The smallest detector: RetinaNet with all that MMDetection's defaults would look up."""
    anchors = dict(ratios=[1.0], octave_base_scale=4, scales_per_octave=1, strides=[8, 16, 32])
    coder = dict(target_means=[0.0] * 4, target_stds=[1.0] * 4)
    return dict(
        type=f"{prefix}RetinaNet",
        data_preprocessor=dict(type=f"{prefix}DetDataPreprocessor"),
        backbone=dict(BACKBONE, type=backbone, out_indices=(1, 2, 3)),
        neck=dict(type=f"{prefix}FPN", in_channels=[512, 1024, 2048], out_channels=16, num_outs=3),
        bbox_head=dict(
            type=f"{prefix}RetinaHead",
            num_classes=2,
            in_channels=16,
            feat_channels=16,
            stacked_convs=1,
            anchor_generator=dict(anchors, type=f"{prefix}AnchorGenerator"),
            bbox_coder=dict(coder, type=f"{prefix}DeltaXYWHBBoxCoder"),
            loss_cls=dict(type=f"{prefix}FocalLoss", use_sigmoid=True),
            loss_bbox=dict(type=f"{prefix}L1Loss"),
        ),
        test_cfg=dict(score_thr=0.05, nms_pre=10),
    )


@pytest.mark.parametrize(
    ("scope", "prefix", "backbone"),
    [
        ("mmdet", "", "mmseg_resnest.ResNeSt"),
        ("mmdet", "", "mmseg.mmseg_resnest.ResNeSt"),
        ("mmseg_resnest", "mmdet.", "ResNeSt"),
        (None, "mmdet.", "mmseg_resnest.ResNeSt"),
    ],
)
def test_a_detector_has_our_backbone(scope: str | None, prefix: str, backbone: str) -> None:
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(detector(prefix, backbone)).eval()
    assert type(model.backbone) is ResNeSt
    with torch.no_grad():
        scores, boxes = model(torch.zeros(1, 3, 64, 64))
    assert [tuple(x.shape) for x in scores] == [(1, 2, 8, 8), (1, 2, 4, 4), (1, 2, 2, 2)]
    assert [tuple(x.shape) for x in boxes] == [(1, 4, 8, 8), (1, 4, 4, 4), (1, 4, 2, 2)]


def test_the_other_resnests_keep_their_names() -> None:
    with DefaultScope.overwrite_default_scope("mmdet"):
        theirs = MODELS.get("mmdet.ResNeSt")
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        assert MODELS.get("mmdet.ResNeSt") is theirs is not ResNeSt
