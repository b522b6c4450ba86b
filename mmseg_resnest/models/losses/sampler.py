# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which pixels a head trains on."""

from __future__ import annotations

from typing import Any

import torch
from mmseg.structures import BasePixelSampler
from torch import Tensor, nn

from ...registry import TASK_UTILS
from .base import as_classes, labelled
from .pixels import hardest


@TASK_UTILS.register_module()
class OHEMPixelSampler(BasePixelSampler):
    """Keeps the hard pixels of a batch of N images, at least ``min_kept`` * N if there are so many.

    Args:
        context: The head whose losses and ``ignore_index`` are taken.
        thresh: Pixels whose class has a lower probability are hard; None: the ``min_kept`` * N
            pixels with the highest losses are.
        min_kept: Pixels for each image that are kept in any case.
    """

    def __init__(self, context: Any, thresh: float | None = None, min_kept: int = 100000) -> None:
        super().__init__()
        self.context, self.thresh, self.min_kept = context, thresh, min_kept

    @torch.no_grad()
    def sample(self, seg_logit: Tensor, seg_label: Tensor) -> Tensor:
        """Weights (N, H, W), 0 or 1, of the pixels of scores (N, C, H, W), labels (N, 1, H, W)."""
        ignore_index = self.context.ignore_index
        ignored = () if ignore_index is None else (ignore_index,)
        scores, labels, valid = labelled(seg_logit, seg_label.squeeze(1), ignored)
        if self.thresh is not None:
            probability = as_classes(scores).softmax(1)
            chance = probability.gather(1, labels.unsqueeze(1)).squeeze(1)
        else:
            chance = -self._losses(seg_logit, seg_label.squeeze(1))
        hard = hardest(chance[valid], self.min_kept * len(labels), self.thresh)
        kept = torch.zeros_like(chance[valid])
        kept[hard] = 1
        return torch.zeros_like(chance).masked_scatter(valid, kept)

    def _losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The sum (N, H, W) of the head's losses."""
        losses = self.context.loss_decode
        total = torch.zeros(labels.shape, device=labels.device)
        for loss in losses if isinstance(losses, nn.ModuleList) else [losses]:
            value = loss(
                scores,
                labels,
                weight=None,
                ignore_index=self.context.ignore_index,
                reduction_override="none",
            )
            total = total + (value.sum(1) if value.dim() > labels.dim() else value)
        return total
