# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""mIoU, pixAcc and mAcc over a data set and all processes, from one integer matrix."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..errors import UserError
from ..registry import METRICS
from .confusion_matrix import (
    SegmentationScores,
    confusion_matrix,
    count_unchecked,
    scores_from_confusion,
)
from .counting import CountingMetric
from .image_counts import ImageCounts
from .per_image import ImageRecord, PerImage, class_map
from .results import class_table, make_parent, write_confusion, write_result

__all__ = ["MORE_METRICS", "SegmentationMetric"]

# Names of what SegmentationMetric can compute beyond mIoU, pixAcc and mAcc.
MORE_METRICS = ("precision", "recall", "F1", "fwIoU", "boundary_IoU", "image_mIoU", "ECE")
_PER_CLASS = {"precision": "precision", "recall": "recall", "F1": "f1"}


def _percent(fraction: float) -> float:
    return 100.0 * float(fraction)


def _percent_or_none(fraction: float) -> float | None:
    return None if math.isnan(fraction) else _percent(fraction)


@METRICS.register_module()
class SegmentationMetric(CountingMetric):
    """mIoU, pixAcc and mAcc in percent, exact for any number of images and processes.

    Each process adds the confusion matrices of its images (:class:`.counting.CountingMetric`).

    Conventions: pixels labelled ``ignore_index`` count nowhere; a class that is neither in the
    labels nor predicted is left out of mIoU (shown as ``-``, ``null`` in JSON); a class that is
    predicted but never labelled counts as IoU 0; a class that is never labelled is left out of
    mAcc.

    After :meth:`evaluate`, ``last_result`` holds everything that is written as JSON, on every
    process, so a hook or tool can write it elsewhere with :func:`write_result`:

    * ``mIoU``, ``pixAcc``, ``mAcc``: percent, full precision;
    * ``images``, ``pixels``, ``labelled_pixels``, ``correct_pixels``, ``ignore_index``;
    * ``classes``: per class ``name``, ``IoU``, ``Acc`` (percent or None) and the pixel counts
      ``intersection``, ``union``, ``label``, ``predicted``;
    * ``confusion_matrix``: C lists of C integers, rows = label, columns = prediction;
    * what ``metrics`` and ``bootstrap`` ask for.

    ``last_images`` holds the counts of each image where they are needed. docs/metrics.md defines
    every number.

    Args:
        ignore_index: Label value left out.
        output_json: File for the result of each evaluation; None writes none.
        collect_device: As MMEngine's metrics; not used.
        prefix: Put before the names of the returned values, as ``prefix/mIoU``.
        metrics: More numbers, of ``precision``, ``recall``, ``F1``, ``fwIoU``, ``boundary_IoU``,
            ``image_mIoU`` and ``ECE``.
        bootstrap: Number of draws for ``mIoU_interval``; 0 computes none.
        boundary_ratio: Width of the boundary band, as a fraction of the image's diagonal.
        calibration_bins: Number of bins of ``ECE``.
        scores: What the model's scores are, for ``ECE``: ``logits``, or ``sums`` of exponentials
            (the multi-scale grid evaluation), which are scaled to sum to 1.
        image_counts: File for the counts of each image (``.npz``); None writes none.
        confusion_csv: File for the confusion matrix; None writes none.

    Raises:
        UserError: A file cannot be written, or an option is wrong.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        output_json: str | os.PathLike[str] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        metrics: Sequence[str] = (),
        bootstrap: int = 0,
        boundary_ratio: float = 0.02,
        calibration_bins: int = 15,
        scores: str = "logits",
        image_counts: str | os.PathLike[str] | None = None,
        confusion_csv: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        more = [metrics] if isinstance(metrics, str) else list(metrics)
        for name, good, allowed in (
            ("metrics", set(more) <= set(MORE_METRICS), ", ".join(MORE_METRICS)),
            ("bootstrap", bootstrap >= 0, "0 or more"),
            ("boundary_ratio", 0 < boundary_ratio < 1, "between 0 and 1"),
            ("calibration_bins", calibration_bins >= 1, "1 or more"),
            ("scores", scores in ("logits", "sums"), "'logits' or 'sums'"),
        ):
            if not good:
                raise UserError("argument", f"SegmentationMetric, {name}", f"allowed: {allowed}")
        self.ignore_index = ignore_index
        self.more = more
        self._per_image = PerImage(
            more, bootstrap, boundary_ratio, calibration_bins, scores == "logits", ignore_index
        )
        self.output_json = None if output_json is None else Path(output_json)
        self.image_counts = None if image_counts is None else Path(image_counts)
        self.confusion_csv = None if confusion_csv is None else Path(confusion_csv)
        for path in (self.output_json, self.image_counts, self.confusion_csv):
            if path is not None and is_main_process():
                make_parent(path)  # now rather than after hours of evaluation
        self.last_images: ImageCounts | None = None

    def _start_anew(self) -> None:
        super()._start_anew()
        self._wrong: Tensor | None = None  # number of the first image found out of range, or 0
        self._names: list[str] = []  # of the images counted on a GPU
        self._kept: list[ImageRecord] = []

    @property
    def _keeps_images(self) -> bool:
        return self._per_image.needed or self.image_counts is not None

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Add the confusion matrices of one batch.

        Args:
            data_batch: Not used.
            data_samples: Dicts or data elements with ``pred_sem_seg.data`` and
                ``gt_sem_seg.data``, (1, H, W) or (H, W).

        Raises:
            UserError: A sample has no label, its sizes differ or a value is out of range (on a
                GPU this is said by :meth:`evaluate`); the message names the image.
        """
        num_classes = len(self.class_names)
        for sample in data_samples:
            if isinstance(sample, BaseDataElement):
                sample = sample.to_dict()
            matrix, pixels = self._count(sample, num_classes)
            if self._keeps_images:
                name = str(sample.get("img_path") or f"image {self._images + 1}")
                self._kept.append(self._per_image.record(name, sample, matrix))
            self._add(matrix, pixels)

    def _gather_images(self, size: int) -> list[ImageRecord]:
        """The images of all processes in the order of the data set, each once."""
        parts = all_gather_object(self._kept)
        longest = max(len(part) for part in parts)
        # MMEngine's sampler gives the processes the images in turn, see CountingMetric.
        ordered = [part[i] for i in range(longest) for part in parts if i < len(part)]
        return ordered[:size]

    def _count(self, sample: Mapping[str, Any], num_classes: int) -> tuple[Tensor, int]:
        """Confusion matrix and number of pixels of one image."""
        image = sample.get("img_path") or f"image {self._images + 1}"
        if "pred_sem_seg" not in sample:
            raise UserError("model-output", image, "the model returned no pred_sem_seg")
        if "gt_sem_seg" not in sample:
            raise UserError(
                "dataset",
                image,
                "has no label to evaluate against; choose a split with annotations, or add "
                "LoadAnnotations to the test pipeline and seg_map_path to the data set",
            )
        pred = class_map(sample, "pred_sem_seg")
        label = class_map(sample, "gt_sem_seg")
        if pred.shape != label.shape:
            raise UserError(
                "size-mismatch",
                image,
                f"the prediction has {pred.shape[0]}x{pred.shape[1]} pixels, the label "
                f"{label.shape[0]}x{label.shape[1]} (height x width); put LoadAnnotations after "
                "Resize in the test pipeline, or correct the files",
            )
        if pred.device.type != "cpu" and not pred.is_floating_point() and not self._keeps_images:
            return self._count_later(pred, label, str(image), num_classes), pred.numel()
        try:
            matrix = confusion_matrix(pred, label, num_classes, self.ignore_index)
        except UserError as error:
            seg_map = sample.get("seg_map_path")
            where = f"{image} (label {seg_map})" if seg_map else str(image)
            raise UserError(error.code, where, error.text) from None
        return matrix, pred.numel()

    def _count_later(self, pred: Tensor, label: Tensor, image: str, num_classes: int) -> Tensor:
        """The matrix of one image on a GPU; whether classes are in range is asked in the end.

        Asking makes the process wait for the GPU, which then waits for the next image.
        """
        matrix, wrong = count_unchecked(pred, label, num_classes, self.ignore_index)
        self._names.append(image)
        first = (wrong > 0) * len(self._names)
        self._wrong = first if self._wrong is None else self._wrong + (self._wrong == 0) * first
        return matrix

    def _check_counted(self) -> None:
        """Raise for the first image that :meth:`_count_later` found out of range."""
        if self._wrong is not None and int(self._wrong):
            raise UserError(
                "classes",
                self._names[int(self._wrong) - 1],
                f"a prediction or a label is outside 0..{len(self.class_names) - 1} and not "
                f"ignore_index ({self.ignore_index}); check num_classes of the heads, and the "
                "data set's classes, reduce_zero_label and ignore_index",
            )

    def evaluate(self, size: int) -> dict[str, float]:
        """Sum over the processes, log the table, write the files and start anew.

        Args:
            size: Number of images of the data set.

        Returns:
            ``mIoU``, ``pixAcc`` and ``mAcc`` in percent, the same on every process.

        Raises:
            UserError: No image was evaluated, no pixel is labelled, a value on a GPU was out of
                range, or the JSON cannot be written.
        """
        self._check_counted()
        names = self.class_names
        kept = self._gather_images(size) if self._keeps_images else []
        matrix, images, pixels = self._summed(size, (len(names), len(names)))
        metrics = self.compute_metrics([matrix])
        assert self.last_result is not None
        self.last_result.update(images=images, pixels=pixels)
        self.last_images = None
        if kept:
            more, self.last_images = self._per_image.scores(kept, names, self.last_result)
            metrics.update(more)
        self.last_result.update(metrics)
        MMLogger.get_current_instance().info(
            "%d images, %d labelled of %d pixels\n%s",
            images,
            self.last_result["labelled_pixels"],
            pixels,
            class_table(self.last_result),
        )
        if is_main_process():
            if self.output_json is not None:
                write_result(self.last_result, self.output_json)
            if self.image_counts is not None and self.last_images is not None:
                self.last_images.save(self.image_counts)
            if self.confusion_csv is not None:
                write_confusion(names, self.last_result["confusion_matrix"], self.confusion_csv)
        return self._prefixed(metrics)

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """Scores of the sum of confusion matrices.

        Args:
            results: (C, C) int64 matrices; their sum is scored and set as ``last_result``.

        Returns:
            ``mIoU``, ``pixAcc`` and ``mAcc`` in percent.

        Raises:
            UserError: Every pixel carries ``ignore_index``.
        """
        matrix = torch.stack(list(results)).sum(dim=0)
        scores = scores_from_confusion(matrix)
        if int(matrix.sum()) == 0:
            raise UserError(
                "label",
                "the data set",
                f"every label is ignore_index ({self.ignore_index}): there is nothing to score; "
                "check the label files and reduce_zero_label",
            )
        metrics = {
            "mIoU": _percent(scores.mean_iou),
            "pixAcc": _percent(scores.pix_acc),
            "mAcc": _percent(scores.mean_acc),
        }
        rows = _class_rows(self.class_names, scores)
        for name, attribute in _PER_CLASS.items():
            if name in self.more:
                values = getattr(scores, attribute)
                for row, value in zip(rows, values, strict=True):
                    row[name] = _percent_or_none(value)
                scored = values[~np.isnan(values)]
                metrics[name] = _percent(scored.mean())
        if "fwIoU" in self.more:
            metrics["fwIoU"] = _percent(scores.frequency_weighted_iou)
        self.last_result = {
            **metrics,
            "images": None,
            "pixels": None,
            "labelled_pixels": int(scores.label_pixels.sum()),
            "correct_pixels": int(scores.intersection.sum()),
            "ignore_index": self.ignore_index,
            "classes": rows,
            "confusion_matrix": matrix.tolist(),
        }
        return metrics


def _class_rows(names: Sequence[str], scores: SegmentationScores) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "IoU": _percent_or_none(scores.iou[i]),
            "Acc": _percent_or_none(scores.acc[i]),
            "intersection": int(scores.intersection[i]),
            "union": int(scores.union[i]),
            "label": int(scores.label_pixels[i]),
            "predicted": int(scores.pred_pixels[i]),
        }
        for i, name in enumerate(names)
    ]
