# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The numbers of an evaluation that need its images one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from .boundary import boundary_counts
from .calibration import calibration_counts, calibration_error, predicted_probability
from .image_counts import ImageCounts, bootstrap_interval, image_mean_iou

__all__ = ["ImageRecord", "PerImage", "class_map"]


def class_map(sample: Mapping[str, Any], key: str) -> Tensor:
    """The (H, W) map under ``sample[key]['data']``, which may be (1, H, W) or an array."""
    data = torch.as_tensor(sample[key]["data"])
    if data.ndim == 3 and data.shape[0] == 1:
        data = data[0]
    if data.ndim != 2:
        image = sample.get("img_path", "an image")
        shape = tuple(data.shape)
        said = f"{key} is {shape}, not (H, W) or (1, H, W)"
        said += "; classes that overlap need MultilabelMetric" if data.ndim == 3 else ""
        raise UserError("size-mismatch", image, said)
    return data


@dataclass
class ImageRecord:
    """What is kept of one image."""

    name: str
    counts: NDArray[np.int64]  # (3, C) pixels: intersection, label, predicted
    boundary: NDArray[np.int64]  # (2, C) of the boundary bands: intersection, union; or empty
    calibration: NDArray[np.int64]  # (3, bins), see calibration_counts; or empty


@dataclass(frozen=True)
class PerImage:
    """What is computed of the images: options of :class:`~.metric.SegmentationMetric`."""

    metrics: Sequence[str]
    bootstrap: int
    boundary_ratio: float
    bins: int
    logits: bool
    ignore_index: int

    @property
    def needed(self) -> bool:
        """Whether any of the numbers needs the images."""
        wanted = {"boundary_IoU", "image_mIoU", "ECE"} & set(self.metrics)
        return bool(wanted or self.bootstrap)

    def record(self, name: str, sample: Mapping[str, Any], matrix: Tensor) -> ImageRecord:
        """The record of an image with this confusion matrix (C, C).

        Raises:
            UserError: The sample has no scores, or of another size.
        """
        counts = matrix.cpu().numpy()
        pred, label = class_map(sample, "pred_sem_seg"), class_map(sample, "gt_sem_seg")
        boundary = calibration = np.zeros(0, np.int64)
        if "boundary_IoU" in self.metrics:
            guess, truth = (both.cpu().numpy().astype(np.int64) for both in (pred, label))
            boundary = boundary_counts(
                guess, truth, len(counts), self.ignore_index, self.boundary_ratio
            )
        if "ECE" in self.metrics:
            calibration = self._calibration(name, sample, pred, label)
        counts = np.stack([counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)])
        return ImageRecord(name, counts, boundary, calibration)

    def _calibration(
        self, name: str, sample: Mapping[str, Any], pred: Tensor, label: Tensor
    ) -> NDArray[np.int64]:
        if "seg_logits" not in sample:
            raise UserError(
                "model-output", name, "there is no seg_logits, which ECE needs; do not ask for ECE"
            )
        scores = torch.as_tensor(sample["seg_logits"]["data"])
        if scores.ndim != 3 or scores.shape[1:] != pred.shape:
            shape, size = tuple(scores.shape), tuple(pred.shape)
            raise UserError("size-mismatch", name, f"seg_logits is {shape}, the prediction {size}")
        pred, label = pred.to(scores.device), label.to(scores.device)
        counts: NDArray[np.int64] = calibration_counts(
            predicted_probability(scores, pred, self.logits),
            pred == label,
            label != self.ignore_index,
            self.bins,
        ).numpy()
        return counts

    def scores(
        self, images: Sequence[ImageRecord], classes: list[str], result: dict[str, Any]
    ) -> tuple[dict[str, float], ImageCounts]:
        """The numbers of all images by name, in percent, and the counts of each image.

        Details are added to ``result``, ``SegmentationMetric.last_result``.
        """
        kept = np.stack([image.counts for image in images])
        names = [image.name for image in images]
        counts = ImageCounts(names, classes, kept[:, 0], kept[:, 1], kept[:, 2])
        metrics: dict[str, float] = {}
        if "boundary_IoU" in self.metrics:
            both, union = np.sum([image.boundary for image in images], axis=0)
            iou = [100 * int(b) / int(u) if u else None for b, u in zip(both, union, strict=True)]
            for row, value in zip(result["classes"], iou, strict=True):
                row["boundary_IoU"] = value
            scored = [value for value in iou if value is not None]
            metrics["boundary_IoU"] = sum(scored) / len(scored) if scored else math.nan
        if "image_mIoU" in self.metrics:
            metrics["image_mIoU"] = 100 * image_mean_iou(counts)
        if "ECE" in self.metrics:
            bins = np.sum([image.calibration for image in images], axis=0)
            error, worst = calibration_error(bins)
            metrics["ECE"], metrics["MCE"] = 100 * error, 100 * worst
            result["calibration"] = [
                {
                    "above": b / self.bins,
                    "pixels": number,
                    "accuracy": 100.0 * (right / number) if number else None,
                    "confidence": 100.0 * (units / 2**24 / number) if number else None,
                }
                for b, (number, right, units) in enumerate(bins.T.tolist())
            ]
        if self.bootstrap:
            low, high = (100 * end for end in bootstrap_interval(counts, self.bootstrap))
            result["mIoU_interval"] = [low, high]
            metrics["mIoU_low"], metrics["mIoU_high"] = low, high
        return metrics, counts
