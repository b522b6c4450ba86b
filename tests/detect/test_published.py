# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Published detectors load into the configs and give the outputs of an independent reference.

Weights are seeded, in the published layouts; features of backbone and FPN, and outputs of RPN, box
and mask heads are compared, on boxes of every size.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmcv._ext")

from mmengine.config import Config
from published_detectors import AUTHORS, MMDET, detectron2_shapes, mmdet_shapes, seeded
from reference import Reference, roi_align
from torch import Tensor

from mmseg_resnest.registry import MODELS, building
from mmseg_resnest.weights import convert_state_dict

CONFIGS = Path(__file__).parents[2] / "configs" / "detection"
HEIGHT, WIDTH = 128, 192


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    largest = theirs.abs().max()
    assert largest > 1e-3, "nothing to compare"
    assert (ours - theirs).abs().max() <= 1e-5 * largest


def boxes(count: int) -> Tensor:
    """(image, x1, y1, x2, y2) of all sizes, some beyond the image."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    side = 2 ** torch.linspace(1, 9.2, count)[:, None] * (
        0.6 + torch.rand(count, 2, generator=generator)
    )
    images = torch.arange(count)[:, None] % 2
    return torch.cat([images, centre - side / 2, centre + side / 2], dim=1)


# No AP of Cascade Mask R-CNN with ResNet is published: such files convert, and have no config.
WITH_CONFIG = [name for name in AUTHORS if not re.match(r"cascade_mask_rcnn_resnet\d", name)]


@pytest.mark.parametrize("name", [*WITH_CONFIG, *(f"openmmlab/{name}" for name in MMDET)])
@torch.no_grad()
def test_outputs_equal_the_reference(name):
    if name in AUTHORS:
        layout, source = "detectron2", seeded(detectron2_shapes(AUTHORS[name]))
    else:
        layout, source = "mmdet", seeded(mmdet_shapes(MMDET[name.partition("/")[2]]))
    # in float64, as float32's rounding adds up to more than 1e-5 over the blocks of a ResNeSt-200
    source = {k: v.double() if v.is_floating_point() else v for k, v in source.items()}
    cfg = Config.fromfile(CONFIGS / f"{name}_coco.py")
    cfg.model.backbone.init_cfg = None
    with building(cfg.default_scope), torch.device("meta"):  # drawing weights takes longest
        model = MODELS.build(cfg.model).eval()
    model.load_state_dict(convert_state_dict(source), strict=True, assign=True)
    reference = Reference(source, layout)

    images = torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    features, wanted = model.backbone(images), reference.backbone(images)
    levels, wanted_levels = model.neck(features), reference.fpn(wanted)
    assert (len(features), len(levels)) == (4, 5)
    for ours, theirs in zip([*features, *levels], [*wanted, *wanted_levels], strict=True):
        close(ours, theirs)
    scores, deltas = model.rpn_head(levels)
    for ours, level in zip(zip(scores, deltas, strict=True), wanted_levels, strict=True):
        for one, other in zip(ours, reference.rpn(level), strict=True):
            close(one, other)

    rois = boxes(12).double()
    head = model.roi_head
    cascade = isinstance(head.bbox_head, torch.nn.ModuleList)
    stages = [f".{index}" for index in range(len(head.bbox_head))] if cascade else [""]
    for index, stage in enumerate(stages):
        extractor = head.bbox_roi_extractor[index] if cascade else head.bbox_roi_extractor
        crops, wanted_crops = extractor(levels[:4], rois), roi_align(wanted_levels, rois, 7)
        close(crops, wanted_crops)
        box_head = head.bbox_head[index] if cascade else head.bbox_head
        for one, other in zip(
            box_head(crops), reference.box_head(wanted_crops, stage), strict=True
        ):
            close(one, other)
        if head.with_mask:
            extractor = head.mask_roi_extractor[index] if cascade else head.mask_roi_extractor
            mask_head = head.mask_head[index] if cascade else head.mask_head
            masks = mask_head(extractor(levels[:4], rois))
            close(masks, reference.mask_head(roi_align(wanted_levels, rois, 14), stage))
