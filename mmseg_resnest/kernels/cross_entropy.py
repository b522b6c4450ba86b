# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The cross entropy of every pixel, some rows at a time.

torch's keeps the logarithms of all probabilities, and its gradient takes two more tensors of the
scores' size: three times 276 MB for two crops of 480 pixels in 150 classes, at the moment when
all feature maps of a step are in memory. Pixels have nothing to do with each other. Here the scores
are kept, and the gradient is the one other tensor of their size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .resampling import pieces

__all__ = ["pixel_cross_entropy"]


class _PixelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, labels: Tensor, weights: Tensor | None, ignored: int
    ) -> Tensor:
        ctx.save_for_backward(scores, labels, weights)
        ctx.ignored = ignored
        loss = scores.new_empty(labels.shape)
        for rows in _rows(scores):
            loss[:, rows] = _plain(scores[:, :, rows], labels[:, rows], weights, ignored)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scores, labels, weights = ctx.saved_tensors
        of_scores = torch.empty_like(scores)
        for rows in _rows(scores):
            with torch.enable_grad():
                part = scores[:, :, rows].detach().requires_grad_()
                loss = _plain(part, labels[:, rows], weights, ctx.ignored)
            of_scores[:, :, rows] = torch.autograd.grad(loss, part, gradient[:, rows])[0]
        return of_scores, None, None, None


def _plain(scores: Tensor, labels: Tensor, weights: Tensor | None, ignored: int) -> Tensor:
    return F.cross_entropy(scores, labels, weights, reduction="none", ignore_index=ignored)


def _rows(scores: Tensor) -> Iterator[slice]:
    """Parts of the scores (N, C, H, ...) that stay in the cache."""
    height = scores.shape[2]
    row_bytes = scores.numel() // max(height, 1) * scores.element_size()
    return (slice(*ends) for ends in pieces(height, row_bytes, scores.device))


def pixel_cross_entropy(
    scores: Tensor, labels: Tensor, weights: Tensor | None, ignored: int
) -> Tensor:
    """``cross_entropy`` of torch with reduction 'none', without second derivatives.

    Args:
        scores: (N, C, H, ...).
        labels: (N, H, ...), int64.
        weights: (C,).
        ignored: The label whose pixels have a loss of 0.

    Returns:
        (N, H, ...).
    """
    made: Tensor = _PixelCrossEntropy.apply(scores, labels, weights, ignored)
    return made
