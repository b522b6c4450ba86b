# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Two networks' scores of the same images, compared as labels and probabilities."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import EncoderDecoder, overlaps, thresholds_of
from .agreement import Agreement

__all__ = ["compare_scores"]


def compare_scores(
    model: EncoderDecoder, wanted: Tensor, found: Tensor, size: tuple[int, int] | torch.Size
) -> Agreement:
    """How far scores (N, K, h, w) of a model agree with those of another runtime.

    Labels are compared at ``size``, height and width of the images.
    """
    equal = total = 0
    worst = 0.0
    for one, other in zip(wanted, found, strict=True):
        a, b = (_chances(model, scores, size) for scores in (one, other))
        worst = max(worst, float((a - b).abs().max()))
        same = _labels(model, a) == _labels(model, b)
        equal += int(same.sum())
        total += same.numel()
    return Agreement(len(wanted), total, equal / max(1, total), worst)


def _chances(model: EncoderDecoder, scores: Tensor, size: Any) -> Tensor:
    """Probabilities (K, H, W)."""
    scores = scores[None].float().cpu()
    if tuple(scores.shape[2:]) != tuple(size):
        corners = model.align_corners
        scores = F.interpolate(scores, tuple(size), mode="bilinear", align_corners=corners)
    single = model.out_channels == 1 or overlaps(model)
    return scores[0].sigmoid() if single else scores[0].softmax(0)


def _labels(model: EncoderDecoder, chances: Tensor) -> Tensor:
    if overlaps(model):
        limits = chances.new_tensor(thresholds_of(model.test_cfg, len(chances)))
        return chances > limits.view(-1, 1, 1)
    return chances > model.decode_head.threshold if len(chances) == 1 else chances.argmax(0)
