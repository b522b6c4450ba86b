# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MMPretrain finds our backbone, and our scope finds MMPretrain's parts."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmseg_resnest.models import ResNeSt

BACKBONE = dict(arch="resnest14", out_indices=(3,), output_stride=32)


@pytest.mark.parametrize(
    ("scope", "prefix", "backbone"),
    [
        ("mmpretrain", "", "mmseg_resnest.ResNeSt"),
        ("mmpretrain", "", "mmseg.mmseg_resnest.ResNeSt"),
        ("mmseg_resnest", "mmpretrain.", "ResNeSt"),
        (None, "mmpretrain.", "mmseg_resnest.ResNeSt"),
    ],
)
def test_a_classifier_has_our_backbone(scope: str | None, prefix: str, backbone: str) -> None:
    config = dict(
        type=f"{prefix}ImageClassifier",
        data_preprocessor=dict(type=f"{prefix}ClsDataPreprocessor"),
        backbone=dict(BACKBONE, type=backbone),
        neck=dict(type=f"{prefix}GlobalAveragePooling"),
        head=dict(
            type=f"{prefix}LinearClsHead",
            num_classes=5,
            in_channels=2048,
            loss=dict(type=f"{prefix}CrossEntropyLoss"),
        ),
    )
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(config).eval()
    assert type(model.backbone) is ResNeSt
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_the_other_resnests_keep_their_names() -> None:
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        theirs = MODELS.build(dict(type="ResNeSt", depth=50))
    assert type(theirs).__module__.startswith("mmpretrain.")
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        assert type(MODELS.build(dict(type="mmpretrain.ResNeSt", depth=50))) is type(theirs)
