# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Losses of the overlap of regions, and of the distance between their borders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmseg.models.losses import weight_reduce_loss
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ...errors import UserError, check_value
from ...registry import MODELS
from .base import (
    ClassWeight,
    SegmentationLoss,
    against_rest,
    as_classes,
    check_number,
    labelled,
    one_hot,
)


def _counted_classes(classes: int, ignored: Sequence[int], first: int = 0) -> slice | list[int]:
    """Classes from ``first`` on whose label is not ignored; a list only where it must be one.

    An index that is a list is copied to a GPU, which is waited for.
    """
    counted = [index for index in range(first, classes) if index not in ignored]
    return slice(first, classes) if len(counted) == classes - first else counted


@MODELS.register_module()
class DiceLoss(SegmentationLoss):
    """One minus the overlap (arXiv 1606.04797) of each image, over all its classes together.

    Args:
        use_sigmoid: Probabilities are a sigmoid for each class rather than a softmax.
        activate: Whether scores are logits rather than probabilities.
        naive_dice: The denominator has probabilities instead of their squares.
        ignore_index: A label to ignore beside the head's.
        eps: What keeps the quotient finite.
        reduction: Over images; see :class:`SegmentationLoss`, as for the other arguments.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        activate: bool = True,
        reduction: str = "mean",
        naive_dice: bool = False,
        loss_weight: float = 1.0,
        ignore_index: int | None = None,
        eps: float = 1e-3,
        loss_name: str = "loss_dice",
    ) -> None:
        super().__init__(loss_name, loss_weight, reduction, ignore_index=ignore_index)
        self.use_sigmoid = self.multi_label = bool(use_sigmoid)
        check_number("eps", eps)
        self.activate, self.naive_dice, self.eps = activate, naive_dice, eps

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
        """The loss of scores (N, C, ...) for labels (N, ...), a scalar; 'none': (N,).

        ``weight`` is what each pixel counts, (N, ...), or each image, (N,).
        """
        reduction, ignored = self.reduction_of(reduction_override), self.ignored(ignore_index)
        if self.activate and not self.use_sigmoid and target.shape != pred.shape:
            pred = as_classes(pred)
        image_weight = weight if weight is not None and weight.dim() == 1 else None
        pixel_weight = weight if image_weight is None else None
        scores, targets, mask = against_rest(pred, target, pixel_weight, ignored)
        if self.activate:
            scores = scores.sigmoid() if self.use_sigmoid else scores.softmax(1)
        if scores.shape[1] > 1:
            classes = _counted_classes(scores.shape[1], ignored)
            scores, targets = scores[:, classes], targets[:, classes]
            mask = mask if mask.shape[1] == 1 else mask[:, classes]
        mask = mask.expand_as(scores).flatten(1)
        scores, targets = scores.flatten(1), targets.flatten(1)
        power = 1 if self.naive_dice else 2
        overlap = 2 * (mask * scores * targets).sum(1)
        sizes = (mask * (scores**power + targets**power)).sum(1)
        if self.naive_dice:
            overlap, sizes = overlap + self.eps, sizes + self.eps
        else:
            sizes = sizes + 2 * self.eps
        quotient = overlap / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
        # An image without a labelled pixel has nothing to lose.
        loss = torch.where(mask.any(1), 1 - quotient, 0 * quotient)
        return self.loss_weight * weight_reduce_loss(loss, image_weight, reduction, avg_factor)


@MODELS.register_module()
class TverskyLoss(SegmentationLoss):
    """Tversky loss (arXiv 1706.05721): the mean of classes and images.

    Args:
        smooth: Added to both sides of the quotient.
        alpha: Weight of false positives.
        beta: Weight of false negatives; alpha + beta is 1.
        ignore_index: A label to ignore beside the head's.
        class_weight: See :class:`SegmentationLoss`, as for the other arguments.
    """

    def __init__(
        self,
        smooth: float = 1,
        class_weight: ClassWeight = None,
        loss_weight: float = 1.0,
        ignore_index: int | None = None,
        alpha: float = 0.3,
        beta: float = 0.7,
        loss_name: str = "loss_tversky",
    ) -> None:
        super().__init__(
            loss_name, loss_weight, class_weight=class_weight, ignore_index=ignore_index
        )
        for name, value in (("smooth", smooth), ("alpha", alpha), ("beta", beta)):
            check_number(name, value)
        good = math.isclose(alpha + beta, 1, abs_tol=1e-6)
        check_value("beta", beta, f"1 - alpha, {1 - alpha:g}", good)
        self.smooth, self.alpha, self.beta = smooth, alpha, beta

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = 255,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of scores (N, C, ...) for labels (N, ...), a scalar."""
        ignored, weights = self.ignored(ignore_index), self.weights(pred)
        scores, targets, mask = against_rest(as_classes(pred), target, weight, ignored)
        chance, mask = scores.softmax(1).flatten(2), mask.flatten(2)
        targets = targets.flatten(2)
        true = (mask * chance * targets).sum(2)
        false_positive = (mask * chance * (1 - targets)).sum(2)
        false_negative = (mask * (1 - chance) * targets).sum(2)
        whole = true + self.alpha * false_positive + self.beta * false_negative + self.smooth
        tiny = torch.finfo(whole.dtype).tiny
        loss = torch.where(whole > 0, 1 - (true + self.smooth) / whole.clamp(min=tiny), 0)
        loss = loss.mean(0) if weights is None else loss.mean(0) * weights
        classes = _counted_classes(len(loss), ignored)
        return self.loss_weight * loss[classes].sum() / len(loss)


@MODELS.register_module()
class LovaszLoss(SegmentationLoss):
    """Lovasz-softmax, or the Lovasz hinge of one output (arXiv 1705.08790).

    Args:
        loss_type: 'multi_class', or 'binary' for one output.
        classes: 'present' in the labels, 'all', or a list of classes, whose losses are averaged.
        per_image: Over images instead of all pixels of a batch.
        reduction: Over images with ``per_image``; without it the loss is a scalar. See
            :class:`SegmentationLoss`, as for the other arguments.
    """

    def __init__(
        self,
        loss_type: str = "multi_class",
        classes: str | list[int] = "present",
        per_image: bool = False,
        reduction: str = "mean",
        class_weight: ClassWeight = None,
        loss_weight: float = 1.0,
        loss_name: str = "loss_lovasz",
    ) -> None:
        super().__init__(loss_name, loss_weight, reduction, class_weight)
        names = ("binary", "multi_class")
        check_value("loss_type", loss_type, "'binary' or 'multi_class'", loss_type in names)
        good = classes in ("all", "present") or (
            isinstance(classes, list | tuple)
            and len(classes) > 0
            and all(isinstance(index, int) and index >= 0 for index in classes)
        )
        check_value("classes", classes, "'all', 'present' or a list of classes", good)
        self.binary, self.classes, self.per_image = loss_type == "binary", classes, per_image
        if self.binary and class_weight is not None:
            message = "is not used with loss_type='binary'; remove it"
            raise UserError("config-conflict", "config key class_weight", message)

    def check_outputs(self, outputs: int) -> None:
        """Raise UserError if the loss does not fit a head of so many outputs."""
        super().check_outputs(outputs)
        if self.binary and outputs != 1:
            raise UserError(
                "config-conflict",
                "config key loss_type",
                f"'binary' is for one output, and the head has {outputs}: use 'multi_class'",
            )
        if isinstance(self.classes, list | tuple) and max(self.classes) >= max(outputs, 2):
            message = f"names class {max(self.classes)}, and the head has {outputs} outputs"
            raise UserError("config-conflict", "config key classes", message)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: Any = None,
        reduction_override: str | None = None,
        ignore_index: int | None = 255,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of scores (N, C, ...) for labels (N, ...), a scalar; 'none' per image: (N,).

        Pixels whose ``weight`` is 0 are left out; other weights have no place in this loss.
        """
        weights = self.weights(cls_score)
        scores, labels, valid = labelled(cls_score, label, self.ignored(ignore_index))
        scores = scores if self.binary else as_classes(scores).softmax(1)
        if weight is not None:
            valid = valid & (weight > 0)
        scores = scores.movedim(1, -1)
        if not self.per_image:
            return self.loss_weight * self._flat(scores[valid], labels[valid], weights)
        losses = [
            self._flat(score[where], label[where], weights)
            for score, label, where in zip(scores, labels, valid, strict=True)
        ]
        reduction = self.reduction_of(reduction_override)
        loss = weight_reduce_loss(torch.stack(losses), None, reduction, avg_factor)
        return self.loss_weight * loss

    def _flat(self, scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """The loss of pixels (P, C) with labels (P,), a scalar."""
        if not len(labels):
            return scores.sum()
        if self.binary:
            errors = torch.relu(1 - scores.squeeze(1) * (2 * labels - 1))
            return _jaccard_loss(errors, labels == 1)
        losses = []
        for index in range(scores.shape[1]) if isinstance(self.classes, str) else self.classes:
            inside = labels == index
            if self.classes == "present" and not inside.any():
                continue
            errors = torch.where(inside, 1 - scores[:, index], scores[:, index])
            loss = _jaccard_loss(errors, inside)
            losses.append(loss if weights is None else loss * weights[index])
        return torch.stack(losses).mean()


def _jaccard_loss(errors: Tensor, inside: Tensor) -> Tensor:
    """The Lovasz extension of the Jaccard loss (arXiv 1705.08790, algorithm 1), a scalar.

    Args:
        errors: (P,), at least 0.
        inside: (P,), bool: which pixels are of the class.
    """
    errors, order = errors.sort(descending=True)
    inside = inside[order].to(errors.dtype)
    size = inside.sum()
    jaccard = 1 - (size - inside.cumsum(0)) / (size + (1 - inside).cumsum(0))
    return (errors * torch.diff(jaccard, prepend=jaccard.new_zeros(1))).sum()


@MODELS.register_module()
class HuasdorffDisstanceLoss(SegmentationLoss):
    """Squared errors weighted by squared distances to the borders (Ma et al., MIDL 2020).

    For each class but the first, the squared difference of probability and label is multiplied by
    the sum of squared distances to the border of the labelled region and to that of the predicted
    one, inside these. The mean is over all pixels and all classes. What is ignored is in no region.

    Args:
        reduction: 'none', 'mean' and 'sum' are the same: the loss is a scalar.
        ignore_index: A label to ignore beside the head's.
        class_weight: See :class:`SegmentationLoss`, as for the other arguments.
    """

    def __init__(
        self,
        reduction: str = "mean",
        class_weight: ClassWeight = None,
        loss_weight: float = 1.0,
        ignore_index: int | None = None,
        loss_name: str = "loss_huasdorff_disstance",
    ) -> None:
        super().__init__(loss_name, loss_weight, reduction, class_weight, ignore_index)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = 255,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of scores (N, C, H, W) for labels (N, H, W), a scalar."""
        ignored, weights = self.ignored(ignore_index), self.weights(pred)
        scores, labels, valid = labelled(as_classes(pred), target, ignored)
        chance = scores.softmax(1)
        targets = one_hot(labels, chance.shape[1], chance)
        predicted = one_hot(chance.argmax(1), chance.shape[1], chance)
        mask = valid.unsqueeze(1).to(chance.dtype)
        distances = sum(_squared_distances(mask * regions) for regions in (targets, predicted))
        loss = mask * (chance - targets) ** 2 * distances
        if weight is not None:
            loss = loss * weight.unsqueeze(1)
        loss = loss.mean((0, *range(2, loss.dim())))
        if weights is not None:
            loss = loss * weights
        classes = _counted_classes(len(loss), ignored, first=1)
        return self.loss_weight * loss[classes].sum() / len(loss)


@torch.no_grad()
def _squared_distances(regions: Tensor) -> Tensor:
    """Squared distances, in pixels, of regions' pixels to the nearest one outside; 0 outside.

    Args:
        regions: (N, C, H, W), 0 or 1. One that fills an image ends at the image's border.
    """
    result = np.zeros(regions.shape, np.float32)
    for index, region in enumerate(regions.cpu().numpy().reshape(-1, *regions.shape[2:])):
        place = np.unravel_index(index, regions.shape[:2])
        if region.all():
            result[place] = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1] ** 2
        elif region.any():
            result[place] = distance_transform_edt(region) ** 2
    return torch.from_numpy(result).to(regions)
