# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Losses that are sums over pixels."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmseg.models.losses import weight_reduce_loss
from torch import Tensor

from ...errors import UserError, check_value
from ...kernels.cross_entropy import pixel_cross_entropy
from ...registry import MODELS
from .base import (
    ClassWeight,
    SegmentationLoss,
    against_rest,
    as_classes,
    as_float,
    by_channel,
    check_index,
    check_labels,
    check_number,
    labelled,
)


def _over_processes(factor: Tensor) -> Tensor:
    """The average of a number over all processes that train."""
    if (
        not (dist.is_available() and dist.is_initialized())
        or dist.get_world_size() == 1
        or not torch.is_grad_enabled()
    ):
        return factor
    factor = as_float(factor)
    dist.all_reduce(factor)
    return factor / dist.get_world_size()


def _element_weights(weights: Tensor | None, scores: Tensor, targets: Tensor) -> Tensor | float:
    """What an element of (N, C, ...) counts: the weight of its channel, or of its one class."""
    if weights is None:
        return 1.0
    if scores.shape[1] == 1:
        return weights[0] + (weights[1] - weights[0]) * targets
    return by_channel(weights, scores)


@MODELS.register_module()
class CrossEntropyLoss(SegmentationLoss):
    """Cross entropy of a softmax over classes, or of a sigmoid for each class.

    A mean over labelled pixels, or weighted by class, divides by a number of each process's own
    images, and the mean of such means is not the mean over all images. Here all processes divide by
    their average number, so that several processes train as one with all the images.

    Args:
        use_sigmoid: Each class against the rest, as for one output; the classes' weights multiply
            the term of pixels that are of the class.
        use_mask: Not for labels of pixels; refused.
        avg_non_ignore: The mean is over labelled pixels rather than over all. With a softmax and
            class weights it is always over the weights of labelled pixels.
        reduction: See :class:`SegmentationLoss`, as for the other arguments.
    """

    per_pixel = True

    def __init__(
        self,
        use_sigmoid: bool = False,
        use_mask: bool = False,
        reduction: str = "mean",
        class_weight: ClassWeight = None,
        loss_weight: float = 1.0,
        loss_name: str = "loss_ce",
        avg_non_ignore: bool = False,
    ) -> None:
        super().__init__(loss_name, loss_weight, reduction, class_weight)
        if use_mask:
            raise UserError(
                "config-value",
                "config key use_mask",
                "is for masks of instances; a segmentation head passes labels: use use_sigmoid",
            )
        self.use_sigmoid = self.multi_label = bool(use_sigmoid)
        self.avg_non_ignore = bool(avg_non_ignore)

    def extra_repr(self) -> str:
        """What ``print`` shows of the loss."""
        return f"avg_non_ignore={self.avg_non_ignore}"

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: Any = None,
        reduction_override: str | None = None,
        ignore_index: int | None = -100,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of scores (N, C, ...) for labels (N, ...): a scalar.

        With reduction 'none' it is (N, ...), and with sigmoids of several classes (N, C, ...).
        """
        reduction = self.reduction_of(reduction_override)
        terms = self._sigmoid_terms if self.use_sigmoid else self._softmax_terms
        loss, weight, count = terms(cls_score, label, weight, ignore_index)
        if reduction == "mean" and avg_factor is None:
            avg_factor = count
            if isinstance(count, Tensor):
                avg_factor = _over_processes(count)
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)

    def _softmax_terms(
        self, scores: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int | None
    ) -> tuple[Tensor, Tensor | None, Tensor | int]:
        """Loss (N, ...) of each pixel, its weight, and what a mean divides by."""
        # Scores are not masked as elsewhere: it would copy them, and torch ignores a label itself.
        labels, weights = labels.long(), self.weights(scores)
        scores = as_classes(as_float(scores))
        ignored = -100 if ignore_index is None else ignore_index
        valid = labels != ignored
        if labels.device.type == "cpu":  # on a GPU torch stops the process, and asking would wait
            check_labels(labels, valid, scores.shape[1])
        if labels.device.type == "cpu" and scores.dim() > 2:  # a GPU prefers few large kernels
            loss = pixel_cross_entropy(scores, labels, weights, ignored)
        else:
            loss = F.cross_entropy(scores, labels, weights, reduction="none", ignore_index=ignored)
        count: Tensor | int = labels.numel()
        if weights is not None:
            # Not of ``labels[valid]``: a GPU would be waited for, to know how many these are.
            count = (weights[labels.masked_fill(~valid, 0)] * valid).sum()
        elif self.avg_non_ignore:
            count = valid.sum()
        return loss, weight, count

    def _sigmoid_terms(
        self, scores: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int | None
    ) -> tuple[Tensor, Tensor, Tensor | int]:
        """Loss (N, C, ...), or (N, ...) of one output, its weight, and what a mean divides by."""
        ignored = self.ignored(ignore_index)
        scores, targets, mask = against_rest(scores, labels, None, ignored)
        weights, factor = self.weights(scores), mask
        positive = None
        if weights is not None and scores.shape[1] == 1:
            factor = factor * _element_weights(weights, scores, targets)
        elif weights is not None:
            positive = by_channel(weights, scores)
        if weight is not None:
            factor = factor * (weight if weight.dim() == scores.dim() else weight.unsqueeze(1))
        loss = F.binary_cross_entropy_with_logits(
            scores, targets, pos_weight=positive, reduction="none"
        )
        count: Tensor | int = loss.numel()
        if self.avg_non_ignore:
            count = mask.expand_as(loss).sum()
        if loss.shape[1] == 1 and loss.dim() > 2:
            loss, factor = loss.squeeze(1), factor.squeeze(1)
        return loss, factor, count


@MODELS.register_module()
class FocalLoss(SegmentationLoss):
    """Focal loss (arXiv 1708.02002) of a sigmoid for each class.

    Args:
        use_sigmoid: Must be True: there is no form with a softmax.
        gamma: Power of the modulating factor.
        alpha: Weight of pixels of a class against 1 - alpha of the rest, or a list of one for each
            class.
        class_weight: Weights of the classes' terms; with one output, of pixels by their class.
        reduction: See :class:`SegmentationLoss`, as for the other arguments.
    """

    per_pixel = multi_label = True

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float | list[float] = 0.5,
        reduction: str = "mean",
        class_weight: ClassWeight = None,
        loss_weight: float = 1.0,
        loss_name: str = "loss_focal",
    ) -> None:
        super().__init__(loss_name, loss_weight, reduction, class_weight)
        check_value("use_sigmoid", use_sigmoid, "True", use_sigmoid is True)
        check_number("gamma", gamma)
        self.alpha = list(alpha) if isinstance(alpha, list | tuple) else alpha
        for value in self.alpha if isinstance(self.alpha, list) else [self.alpha]:
            check_number("alpha", value, 0, 1)
        self.gamma = gamma

    def check_outputs(self, outputs: int) -> None:
        """Raise UserError if the loss does not fit a head of so many outputs."""
        super().check_outputs(outputs)
        if isinstance(self.alpha, list) and len(self.alpha) != outputs:
            message = f"has {len(self.alpha)} values, and the head has {outputs} outputs"
            raise UserError("config-conflict", "config key alpha", message)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Any = None,
        reduction_override: str | None = None,
        ignore_index: int | None = 255,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of scores (N, C, ...) for labels (N, ...), a scalar; 'none': (N, C, ...).

        The mean is over all N * C * ... elements, ignored ones included.
        """
        reduction = self.reduction_of(reduction_override)
        scores, targets, mask = against_rest(pred, target, weight, self.ignored(ignore_index))
        alpha: Any = self.alpha
        if isinstance(alpha, list):
            alpha = by_channel(self.constant(alpha, scores), scores)
        probability = scores.sigmoid()
        miss = (1 - probability) * targets + probability * (1 - targets)
        factor = (alpha * targets + (1 - alpha) * (1 - targets)) * miss.pow(self.gamma)
        loss = factor * F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        loss = loss * _element_weights(self.weights(scores), scores, targets)
        return self.loss_weight * weight_reduce_loss(loss, mask, reduction, avg_factor)


@MODELS.register_module()
class OhemCrossEntropy(SegmentationLoss):
    """Mean cross entropy of the pixels that are hard.

    They are those whose class has a probability below ``thres``, and at least the ``min_kept``
    pixels of the batch with the lowest.

    Args:
        ignore_label: A label to ignore beside the head's.
        thres: Probability from which on a pixel is easy.
        min_kept: Pixels of a batch that count in any case.
        loss_weight: See :class:`SegmentationLoss`, as for the other arguments.
    """

    def __init__(
        self,
        ignore_label: int | None = None,
        thres: float = 0.7,
        min_kept: int = 100000,
        loss_weight: float = 1.0,
        class_weight: ClassWeight = None,
        loss_name: str = "loss_ohem",
    ) -> None:
        check_index("ignore_label", ignore_label)
        super().__init__(
            loss_name, loss_weight, class_weight=class_weight, ignore_index=ignore_label
        )
        check_number("thres", thres, 0, 1)
        check_number("min_kept", min_kept)
        self.thresh = thres
        self.min_kept = max(1, int(min_kept))

    def forward(
        self,
        score: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = 255,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of scores (N, C, ...) for labels (N, ...), a scalar."""
        weights = self.weights(score)
        scores, labels, valid = labelled(score, target, self.ignored(ignore_index))
        scores = as_classes(scores)
        losses = F.cross_entropy(scores, labels, weights, reduction="none")
        if weight is not None:
            losses, valid = losses * weight, valid & (weight > 0)
        with torch.no_grad():
            chance = scores.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)[valid]
            hard = hardest(chance, self.min_kept, self.thresh)
        kept = losses[valid][hard]
        return self.loss_weight * kept.sum() / max(kept.numel(), 1)


def hardest(chance: Tensor, least: int, threshold: float | None) -> Tensor:
    """Positions of values (P,) below a threshold, and of at least the ``least`` lowest."""
    ordered, order = chance.sort()
    count = 0 if threshold is None else int((ordered < threshold).sum())
    return order[: max(count, least)]


@MODELS.register_module()
class BoundaryLoss(SegmentationLoss):
    """Binary cross entropy in which a class weighs as much as the rest (PIDNet, arXiv 2206.02066).

    Made for one output and maps of 0 and 1, those of boundaries in PIDNet's head. Several outputs
    are each class against the rest, averaged. The mean is over all pixels, ignored ones included.
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = "loss_boundary") -> None:
        super().__init__(loss_name, loss_weight)

    def forward(
        self,
        bd_pre: Tensor,
        bd_gt: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = 255,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of scores (N, C, H, W) for labels (N, H, W), a scalar."""
        labels = bd_gt.squeeze(1) if bd_gt.dim() == bd_pre.dim() else bd_gt
        scores, targets, mask = against_rest(bd_pre, labels, weight, self.ignored(ignore_index))
        others = (0, *range(2, scores.dim()))
        positive = (mask * targets).sum(others, keepdim=True)
        negative = (mask * (1 - targets)).sum(others, keepdim=True)
        share = positive / (positive + negative).clamp(min=1)
        balance = mask * (targets * (1 - share) + (1 - targets) * share)
        loss = F.binary_cross_entropy_with_logits(scores, targets, balance)
        return self.loss_weight * loss
