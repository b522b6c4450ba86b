# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Losses between the scores of a student and those of its teacher; no label is read."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import check_value
from ...registry import MODELS
from .base import as_classes, as_float, check_number

__all__ = ["ChannelWiseDivergence", "DistillationLoss", "KLDivergence"]


class DistillationLoss(nn.Module, ABC):
    """A loss between two models' scores (N, C, h, w), of any precision, computed in float32.

    The teacher's scores are constants. The mean is over images, so several processes with equal
    batches train as one.

    Args:
        temperature: What scores are divided by; the loss is multiplied by its square, so that
            gradients keep their size.
        loss_weight: What the loss is multiplied by.
        loss_name: Name in the log; it has ``loss`` in it.

    Raises:
        UserError: An option has a value that is not accepted.
    """

    def __init__(self, temperature: float, loss_weight: float, loss_name: str) -> None:
        super().__init__()
        check_number("temperature", temperature, sys.float_info.min)
        check_number("loss_weight", loss_weight, -math.inf)
        named = isinstance(loss_name, str) and "loss" in loss_name
        check_value("loss_name", loss_name, "a text with 'loss' in it", named)
        self.temperature, self.loss_weight = float(temperature), float(loss_weight)
        self.loss_name = loss_name

    def forward(self, scores: Tensor, wanted: Tensor, overlapping: bool = False) -> Tensor:
        """The loss, a scalar.

        Args:
            scores: (N, C, h, w) of the student; one output scores class 1 against class 0.
            wanted: (N, C, h, w) of the teacher.
            overlapping: Whether each class has a sigmoid of its own.
        """
        ours, theirs = (as_float(one) / self.temperature for one in (scores, wanted.detach()))
        loss = self.divergence(ours, theirs, overlapping)
        return self.loss_weight * self.temperature**2 * loss

    @abstractmethod
    def divergence(self, scores: Tensor, wanted: Tensor, overlapping: bool) -> Tensor:
        """The loss of scores that have been divided by the temperature, without its weight."""


@MODELS.register_module()
class ChannelWiseDivergence(DistillationLoss):
    """Channel-wise distillation (Shu et al., ICCV 2021, arXiv 2011.13256) of scores.

    The scores of each class become a distribution over the positions of an image, and the loss is
    the Kullback-Leibler divergence of the student's from the teacher's, a mean over classes and
    images: what counts is where a class scores high, and a rare class weighs as much as any other.
    Temperature and weight are the paper's.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        loss_weight: float = 3.0,
        loss_name: str = "loss_channel_wise",
    ) -> None:
        super().__init__(temperature, loss_weight, loss_name)

    def divergence(self, scores: Tensor, wanted: Tensor, overlapping: bool) -> Tensor:
        """See :class:`DistillationLoss`; classes that overlap make no difference."""
        ours, theirs = (one.flatten(2).log_softmax(2) for one in (scores, wanted))
        loss = F.kl_div(ours, theirs, reduction="sum", log_target=True)
        return loss / (scores.shape[0] * scores.shape[1])


@MODELS.register_module()
class KLDivergence(DistillationLoss):
    """Distillation of class probabilities (Hinton et al., arXiv 1503.02531), a mean over pixels.

    Kullback-Leibler divergence of the student's softmax over classes from the teacher's; where
    classes overlap, that of each class's sigmoid, a mean over classes too.
    """

    def __init__(
        self, temperature: float = 4.0, loss_weight: float = 1.0, loss_name: str = "loss_kl"
    ) -> None:
        super().__init__(temperature, loss_weight, loss_name)

    def divergence(self, scores: Tensor, wanted: Tensor, overlapping: bool) -> Tensor:
        """See :class:`DistillationLoss`."""
        if overlapping:
            chance = wanted.sigmoid()
            # log p - log q of the class and of its absence.
            there = F.logsigmoid(wanted) - F.logsigmoid(scores)
            absent = F.logsigmoid(-wanted) - F.logsigmoid(-scores)
            return (chance * there + (1 - chance) * absent).mean()
        ours, theirs = (as_classes(one).log_softmax(1) for one in (scores, wanted))
        loss = F.kl_div(ours, theirs, reduction="sum", log_target=True)
        return loss / (ours.numel() / ours.shape[1])
