# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Calibration: whether a model that says 80 % is right in 80 % of the pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["calibration_counts", "calibration_error", "predicted_probability"]

# Confidences are summed as whole multiples of this: the sum is then the same in any order.
_UNIT = 2**-24


def predicted_probability(scores: Tensor, pred: Tensor, are_logits: bool = True) -> Tensor:
    """The probability (H, W) of the predicted class.

    Args:
        scores: (C, H, W) logits; (1, H, W) is the probability of class 1 of two. Or, with
            ``are_logits`` False, scores that are not negative, of any scale.
        pred: (H, W), the most likely class, or of two what a threshold decides.
        are_logits: Whether the soft-max is still to be taken.
    """
    scores = scores.float()
    if scores.shape[0] == 1:
        return torch.where(pred == 1, scores[0], 1 - scores[0])
    if are_logits:
        # The largest probability is 1 / sum of exp(logit - largest logit).
        return 1 / (scores - scores.amax(dim=0)).exp_().sum(dim=0)
    return scores.amax(dim=0) / scores.sum(dim=0)


def calibration_counts(
    confidence: Tensor, correct: Tensor, labelled: Tensor, bins: int = 15
) -> Tensor:
    """Pixels, right pixels and summed confidence of each bin of confidence.

    Args:
        confidence: (H, W), in 0..1.
        correct: (H, W), whether the prediction is right.
        labelled: (H, W), whether the pixel counts.
        bins: Number of bins; bin b holds confidences in (b / bins, (b + 1) / bins].

    Returns:
        (3, bins) int64; confidences in units of 2**-24.
    """
    chosen = confidence[labelled].double()
    index = (chosen * bins).ceil().long().sub_(1).clamp_(0, bins - 1)
    right = correct[labelled].long()
    units = (chosen / _UNIT).round().long()
    counts = torch.zeros(3, bins, dtype=torch.int64, device=chosen.device)
    counts[0] = torch.bincount(index, minlength=bins)
    counts[1].scatter_add_(0, index, right)
    counts[2].scatter_add_(0, index, units)
    return counts.cpu()


def calibration_error(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Expected and maximum calibration error, as fractions of 1.

    ECE = sum over bins of share of pixels * |accuracy - mean confidence|; MCE is the largest of
    these differences (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
    equations 3 and 5). ``counts`` is what :func:`calibration_counts` returned; without pixels both
    are NaN.
    """
    number, right, units = (np.asarray(row, np.float64) for row in counts)
    filled = number > 0
    if not filled.any():
        return float("nan"), float("nan")
    gap = np.abs(right[filled] - units[filled] * _UNIT) / number[filled]
    return float((gap * number[filled]).sum() / number.sum()), float(gap.max())
