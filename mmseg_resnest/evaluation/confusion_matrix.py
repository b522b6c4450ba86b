# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The confusion matrix of label maps, counted in integers, and the scores read from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError

__all__ = ["SegmentationScores", "confusion_matrix", "scores_from_confusion"]

_PIECE = 2**16  # pixels that are counted at a time on a CPU


def _flat_int64(values: Tensor, name: str) -> Tensor:
    """``values`` as a flat int64 tensor; whole numbers in a floating type are converted."""
    if values.is_floating_point():
        # MMSegmentation's binary heads return their 0/1 map in the type of the scores.
        if not bool((values == values.round()).all()):
            raise UserError("label", name, "holds fractions; it must hold classes")
    elif values.is_complex():
        raise UserError("label", name, f"is {values.dtype}; it must hold integers")
    return values.reshape(-1).to(torch.int64)


def confusion_matrix(
    pred: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255
) -> Tensor:
    """Count how often each class was predicted for each label.

    Args:
        pred: Predicted classes, any shape, any integer type (or whole numbers in a floating one),
            every value in [0, num_classes), those of ignored pixels too.
        label: True classes, same shape; ``ignore_index`` marks pixels that count nowhere.
        num_classes: Number of classes C, at least 1.
        ignore_index: The label left out. It wins over a class of the same number.

    Returns:
        int64 tensor (C, C) on ``pred``'s device; entry [i, j] is the number of pixels of label i
        predicted as j. The sum of all entries is the number of labelled pixels.

    Raises:
        UserError: Shapes differ, or a prediction or a label is out of range.
    """
    if num_classes < 1:
        raise UserError("argument", "num_classes", f"is {num_classes}; it must be at least 1")
    if pred.shape != label.shape:
        shapes = f"the prediction is {tuple(pred.shape)}, the label {tuple(label.shape)}"
        raise UserError("size-mismatch", "label maps", shapes)
    if pred.numel() == 0:
        return torch.zeros(num_classes, num_classes, dtype=torch.int64, device=pred.device)
    pred, label = pred.reshape(-1), label.to(pred.device).reshape(-1)
    # In pieces that stay in the cache: a dozen passes over the memory of a map cost more than all
    # the arithmetic.
    step = _PIECE if pred.device.type == "cpu" else pred.numel()
    counts = torch.zeros(num_classes * num_classes + 1, dtype=torch.int64, device=pred.device)
    for first in range(0, pred.numel(), step):
        piece = slice(first, first + step)
        counts += _count_piece(pred[piece], label[piece], num_classes, ignore_index)
    return counts[:-1].reshape(num_classes, num_classes)


def _count_piece(pred: Tensor, label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Counts of label * num_classes + pred, and of ignored pixels in the last place."""
    label = _flat_int64(label, "the label map")
    pred = _flat_int64(pred, "the prediction")
    low, high = (int(v) for v in pred.aminmax())
    if low < 0 or high >= num_classes:
        raise UserError(
            "classes",
            "the prediction",
            f"holds {low if low < 0 else high}, outside 0..{num_classes - 1}; make num_classes of "
            "the heads and the data set's classes agree",
        )
    ignored = label == ignore_index
    index = label.masked_fill(ignored, 0)
    low, high = (int(v) for v in index.aminmax())
    if low < 0 or high >= num_classes:
        raise UserError(
            "label",
            "the label map",
            f"holds {low if low < 0 else high}, neither a class (0..{num_classes - 1}) nor "
            f"ignore_index ({ignore_index}); check the file, and the data set's classes, "
            "reduce_zero_label and ignore_index in the config",
        )
    # Ignored pixels go to one bin behind the matrix: cheaper than selecting the others first.
    index.mul_(num_classes).add_(pred).masked_fill_(ignored, num_classes * num_classes)
    return torch.bincount(index, minlength=num_classes * num_classes + 1)


def count_unchecked(
    pred: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """:func:`confusion_matrix` for a GPU: nothing is waited for.

    Returns:
        The matrix without pixels that are out of range, and the number of those, int64 ().
    """
    pred = pred.reshape(-1).to(torch.int64)
    label = label.to(pred.device, non_blocking=True).reshape(-1).to(torch.int64)
    ignored = label == ignore_index
    wrong = (pred < 0) | (pred >= num_classes) | ~ignored & ((label < 0) | (label >= num_classes))
    last = num_classes * num_classes
    index = (label * num_classes + pred).masked_fill_(ignored, last).masked_fill_(wrong, last + 1)
    # bincount would wait for the largest index, to know the size of its result.
    counts = torch.zeros(last + 2, dtype=torch.int64, device=pred.device)
    counts.scatter_add_(0, index, torch.ones_like(index))
    return counts[:last].view(num_classes, num_classes), counts[last + 1]


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of one confusion matrix, as fractions of 1 in float64.

    Classes that cannot be scored hold NaN and are left out of the means: ``iou`` of a class that
    is neither in the labels nor predicted (its union is 0), ``acc`` of a class that is not in the
    labels. A class that is predicted but not in the labels has ``iou`` 0 and counts in the mean.
    This is the convention of MMSegmentation.

    Attributes:
        pix_acc: Correct / labelled pixels over the whole set.
        mean_iou: Mean of ``iou`` over the classes that have one.
        mean_acc: Mean of ``acc`` over the classes that have one.
        iou: (C,) intersection / union, each summed over the set before dividing.
        acc: (C,) intersection / labelled pixels of the class (its recall).
        intersection: (C,) int64 pixels of the class that were predicted as it.
        union: (C,) int64 pixels of the class or predicted as it, among the labelled ones.
        label_pixels: (C,) int64 pixels labelled with the class.
        pred_pixels: (C,) int64 labelled pixels predicted as the class.
    """

    pix_acc: float
    mean_iou: float
    mean_acc: float
    iou: NDArray[np.float64]
    acc: NDArray[np.float64]
    intersection: NDArray[np.int64]
    union: NDArray[np.int64]
    label_pixels: NDArray[np.int64]
    pred_pixels: NDArray[np.int64]

    @property
    def precision(self) -> NDArray[np.float64]:
        """(C,) intersection / predicted pixels; NaN where a class is never predicted."""
        return _ratio(self.intersection, self.pred_pixels)

    @property
    def recall(self) -> NDArray[np.float64]:
        """(C,) intersection / labelled pixels: ``acc`` by its other name."""
        return self.acc

    @property
    def f1(self) -> NDArray[np.float64]:
        """(C,) 2 intersection / (labelled + predicted pixels), the Dice coefficient.

        It is the harmonic mean of precision and recall where both exist, 0 where a class is only
        labelled or only predicted, and NaN where it is neither.
        """
        return _ratio(2 * self.intersection, self.label_pixels + self.pred_pixels)

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean of ``iou``, each class weighted by its share of the labelled pixels.

        Source: Long et al., "Fully Convolutional Networks", CVPR 2015, section 5.
        """
        present = self.label_pixels > 0
        if not present.any():
            return float("nan")
        share = self.label_pixels[present] / self.label_pixels.sum()
        return float((share * self.iou[present]).sum())


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """``part / whole`` in float64, NaN where ``whole`` is 0."""
    nothing = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=nothing, where=whole != 0)


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of what is not NaN; NaN when there is nothing."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def scores_from_confusion(matrix: Tensor | NDArray[np.integer]) -> SegmentationScores:
    """Pixel accuracy, mean IoU and mean accuracy of a confusion matrix.

    pixAcc = correct / labelled pixels of the whole set; mIoU = mean over classes of the summed
    intersection / the summed union (Everingham et al., "The PASCAL Visual Object Classes
    Challenge: A Retrospective", IJCV 2015, section 3.4); unlabelled pixels count in neither.

    Args:
        matrix: (C, C) integers, rows = label, columns = prediction.

    Raises:
        ValueError: ``matrix`` is not square, or not of integers.
    """
    counts = matrix.cpu().numpy() if isinstance(matrix, Tensor) else np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"a confusion matrix is square, got shape {counts.shape}")
    if not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"a confusion matrix holds integers, got {counts.dtype}")
    counts = counts.astype(np.int64)
    intersection = counts.diagonal().copy()
    label_pixels = counts.sum(axis=1)
    pred_pixels = counts.sum(axis=0)
    union = label_pixels + pred_pixels - intersection
    iou = _ratio(intersection, union)
    acc = _ratio(intersection, label_pixels)
    labelled = int(label_pixels.sum())
    return SegmentationScores(
        pix_acc=int(intersection.sum()) / labelled if labelled else float("nan"),
        mean_iou=_mean(iou),
        mean_acc=_mean(acc),
        iou=iou,
        acc=acc,
        intersection=intersection,
        union=union,
        label_pixels=label_pixels,
        pred_pixels=pred_pixels,
    )
