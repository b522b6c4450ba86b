# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""mIoU, pixAcc and mAcc over a data set and all processes, from one integer matrix."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import (
    all_gather_object,
    all_reduce,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from prettytable import PrettyTable
from torch import Tensor

from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation.boundary import boundary_counts
from mmseg_resnest.evaluation.calibration import (
    calibration_counts,
    calibration_error,
    top_probability,
)
from mmseg_resnest.evaluation.confusion_matrix import (
    SegmentationScores,
    confusion_matrix,
    count_unchecked,
    scores_from_confusion,
)
from mmseg_resnest.evaluation.image_counts import (
    ImageCounts,
    bootstrap_interval,
    image_mean_iou,
)
from mmseg_resnest.io.atomic import atomic_write
from mmseg_resnest.io.text import printable
from mmseg_resnest.registry import METRICS

__all__ = ["MORE_METRICS", "SegmentationMetric", "class_table", "write_result"]

# Names of what SegmentationMetric can compute beyond mIoU, pixAcc and mAcc.
MORE_METRICS = ("precision", "recall", "F1", "fwIoU", "boundary_IoU", "image_mIoU", "ECE")
_PER_CLASS = {"precision": "precision", "recall": "recall", "F1": "f1"}


def _percent(fraction: float) -> float:
    return 100.0 * float(fraction)


def _no_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def label_map(sample: Mapping[str, Any], key: str) -> Tensor:
    """The (H, W) map under ``sample[key]['data']``, which may be (1, H, W) or an array."""
    data = torch.as_tensor(sample[key]["data"])
    if data.ndim == 3 and data.shape[0] == 1:
        data = data[0]
    if data.ndim != 2:
        raise UserError(
            "size-mismatch",
            sample.get("img_path", "an image"),
            f"{key} has shape {tuple(data.shape)}; it must be (H, W) or (1, H, W)",
        )
    return data


@dataclass
class _Image:
    """What is kept of one image."""

    name: str
    counts: NDArray[np.int64]  # (3, C): intersection, label, predicted
    boundary: NDArray[np.int64]  # (2, C): intersection, union; empty unless asked for
    calibration: NDArray[np.int64]  # (3, bins); empty unless asked for


@METRICS.register_module()
class SegmentationMetric(BaseMetric):
    """mIoU, pixAcc and mAcc in percent, exact for any number of images and processes.

    Each process adds the confusion matrices of its images in int64; the matrices are summed over
    the processes as integers, so the result does not depend on how the images were shared out.
    Images that a sampler gave out twice to fill up the last round
    (``DefaultSampler(round_up=True)``) count once.

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

    ``last_images`` holds the counts of each image where ``image_counts`` or one of these needs
    them. docs/metrics.md defines every number.

    Args:
        ignore_index: Label value left out.
        metrics: More numbers to compute, of ``precision``, ``recall``, ``F1`` (of each class and
            their means), ``fwIoU`` (IoU weighted by how frequent the classes are),
            ``boundary_IoU`` (of each class and its mean), ``image_mIoU`` (mean of the images' own
            mIoU) and ``ECE`` (expected calibration error, with ``MCE`` and the bins).
        bootstrap: Number of draws for ``mIoU_interval``, the 95 % confidence interval of mIoU
            over the choice of images; 0 computes none.
        boundary_ratio: Width of the boundary band, as a fraction of the image's diagonal.
        calibration_bins: Number of bins of ``ECE``.
        scores: What the model's scores are, for ``ECE``: ``logits``, or ``sums`` of exponentials
            (the multi-scale grid evaluation), which are scaled to sum to 1.
        image_counts: File that each evaluation writes the counts of each image to (``.npz``), for
            ``mmseg-resnest compare-runs``; None writes none.
        confusion_csv: File that each evaluation writes the confusion matrix to, with the names of
            the classes; None writes none.
        output_json: File that each evaluation writes its result to; None writes none.
        collect_device: Kept for the configs of MMEngine's metrics; the sum over processes runs
            where their backend needs it.
        prefix: Put before the names of the returned values, as ``prefix/mIoU``.

    Raises:
        UserError: A file cannot be written, or an option is wrong.
    """

    default_prefix = ""  # None would make MMEngine warn about a missing prefix

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
        self.ignore_index = ignore_index
        self.more = [metrics] if isinstance(metrics, str) else list(metrics)
        for name in self.more:
            if name not in MORE_METRICS:
                raise UserError(
                    "argument",
                    "SegmentationMetric",
                    f"metrics names {name!r}; known: {', '.join(MORE_METRICS)}",
                )
        if bootstrap < 0 or calibration_bins < 1 or not 0 < boundary_ratio < 1:
            raise UserError(
                "argument",
                "SegmentationMetric",
                f"bootstrap={bootstrap} must be 0 or more, calibration_bins="
                f"{calibration_bins} at least 1, boundary_ratio={boundary_ratio} between 0 and 1",
            )
        if scores not in ("logits", "sums"):
            raise UserError(
                "input", "SegmentationMetric", f"scores is {scores!r}; use 'logits' or 'sums'"
            )
        self.bootstrap = bootstrap
        self.boundary_ratio = boundary_ratio
        self.calibration_bins = calibration_bins
        self.scores = scores
        self.output_json = None if output_json is None else Path(output_json)
        self.image_counts = None if image_counts is None else Path(image_counts)
        self.confusion_csv = None if confusion_csv is None else Path(confusion_csv)
        for path in (self.output_json, self.image_counts, self.confusion_csv):
            if path is not None and is_main_process():
                # Now rather than after hours of evaluation.
                _make_parent(path)
        self.last_result: dict[str, Any] | None = None
        self.last_images: ImageCounts | None = None
        self._reset()

    def _reset(self) -> None:
        self.results.clear()
        self._matrix: Tensor | None = None  # (C, C) sum over the images but the last
        self._last: Tensor | None = None  # (C, C) of the last image
        self._pixels = 0
        self._last_pixels = 0
        self._images = 0
        self._wrong: Tensor | None = None  # number of the first image found out of range, or 0
        self._names: list[str] = []  # of the images counted on a GPU
        self._kept: list[_Image] = []

    @property
    def _keeps_images(self) -> bool:
        wanted = {"boundary_IoU", "image_mIoU", "ECE"} & set(self.more)
        return bool(wanted or self.bootstrap or self.image_counts)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, from the data set's metainfo."""
        classes = (self.dataset_meta or {}).get("classes")
        if not classes:
            raise UserError(
                "classes",
                "",
                "the data set to evaluate names no classes; give it metainfo=dict(classes=(...)) "
                "in the config",
            )
        return [str(name) for name in classes]

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Add the confusion matrices of one batch.

        Args:
            data_batch: Not used.
            data_samples: Samples, as dicts or data elements, with ``pred_sem_seg.data`` and
                ``gt_sem_seg.data`` of shape (1, H, W) or (H, W) each.

        Raises:
            UserError: A sample has no label, its sizes differ or a value is out of range (on a
                GPU this is said by :meth:`evaluate`); the message names the image.
        """
        num_classes = len(self.class_names)
        for sample in data_samples:
            if isinstance(sample, BaseDataElement):
                sample = sample.to_dict()
            matrix, pixels = self._count(sample, num_classes)
            if self._last is not None:
                self._matrix = self._last if self._matrix is None else self._matrix + self._last
                self._pixels += self._last_pixels
            self._last, self._last_pixels = matrix, pixels
            if self._keeps_images:
                self._kept.append(self._keep(sample, matrix, num_classes))
            self._images += 1

    def _keep(self, sample: Mapping[str, Any], matrix: Tensor, num_classes: int) -> _Image:
        """The counts of one image that the sum over images cannot give."""
        counts = matrix.cpu().numpy()
        pred, label = label_map(sample, "pred_sem_seg"), label_map(sample, "gt_sem_seg")
        boundary = calibration = np.zeros(0, np.int64)
        if "boundary_IoU" in self.more:
            boundary = boundary_counts(
                pred.cpu().numpy().astype(np.int64),
                label.cpu().numpy().astype(np.int64),
                num_classes,
                self.ignore_index,
                self.boundary_ratio,
            )
        if "ECE" in self.more:
            calibration = self._calibrate(sample, pred, label)
        return _Image(
            str(sample.get("img_path") or f"image {self._images + 1}"),
            np.stack([counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)]),
            boundary,
            calibration,
        )

    def _calibrate(
        self, sample: Mapping[str, Any], pred: Tensor, label: Tensor
    ) -> NDArray[np.int64]:
        if "seg_logits" not in sample:
            raise UserError(
                "input",
                sample.get("img_path"),
                "the model returned no seg_logits, which ECE needs; take ECE out of the metrics",
            )
        scores = torch.as_tensor(sample["seg_logits"]["data"])
        if scores.ndim != 3 or scores.shape[1:] != pred.shape:
            raise UserError(
                "size-mismatch",
                sample.get("img_path"),
                f"seg_logits has shape {tuple(scores.shape)}; it must be "
                f"(C, {pred.shape[0]}, {pred.shape[1]})",
            )
        label = label.to(scores.device)
        confidence = top_probability(scores, self.scores == "logits")
        counts: NDArray[np.int64] = calibration_counts(
            confidence,
            pred.to(scores.device) == label,
            label != self.ignore_index,
            self.calibration_bins,
        ).numpy()
        return counts

    def _gather_images(self, size: int) -> list[_Image]:
        """The images of all processes in the order of the data set, each once."""
        parts = all_gather_object(self._kept)
        longest = max(len(part) for part in parts)
        # MMEngine's sampler gives the processes the images in turn, see _is_padding.
        ordered = [part[i] for i in range(longest) for part in parts if i < len(part)]
        return ordered[:size]

    def _count(self, sample: Mapping[str, Any], num_classes: int) -> tuple[Tensor, int]:
        """Confusion matrix and number of pixels of one image."""
        image = sample.get("img_path") or f"image {self._images + 1} of the evaluation"
        if "pred_sem_seg" not in sample:
            raise UserError(
                "input",
                image,
                "the model returned no pred_sem_seg; SegmentationMetric needs a segmentation model",
            )
        if "gt_sem_seg" not in sample:
            raise UserError(
                "input",
                image,
                "there is no label to evaluate against. A test split without "
                "annotations cannot be scored: evaluate another split, or write the predictions "
                "with mmseg-resnest predict. If there are labels, the test pipeline lacks "
                "LoadAnnotations, or the data set its seg_map_path",
            )
        pred = label_map(sample, "pred_sem_seg")
        label = label_map(sample, "gt_sem_seg")
        if pred.shape != label.shape:
            raise UserError(
                "size-mismatch",
                image,
                f"the prediction has {pred.shape[0]}x{pred.shape[1]} pixels, the label "
                f"{label.shape[0]}x{label.shape[1]} (height x width). Either image and label file "
                "differ in size, or the test pipeline resizes the label: put LoadAnnotations "
                "after Resize",
            )
        if pred.is_cuda and not pred.is_floating_point() and not self._keeps_images:
            return self._count_later(pred, label, str(image), num_classes), pred.numel()
        try:
            matrix = confusion_matrix(pred, label, num_classes, self.ignore_index)
        except UserError as error:
            seg_map = sample.get("seg_map_path")
            where = f"{image} (label {seg_map})" if seg_map else str(image)
            raise UserError("input", where, f"{error.text}") from None
        return matrix, pred.numel()

    def _count_later(self, pred: Tensor, label: Tensor, image: str, num_classes: int) -> Tensor:
        """The matrix of one image on a GPU; whether classes are in range is asked in the end.

        Asking makes the process wait for the GPU, which then waits for the next image.
        """
        matrix, wrong = count_unchecked(pred, label, num_classes, self.ignore_index)
        self._names.append(image)
        number = (wrong > 0) * len(self._names)
        self._wrong = (
            number if self._wrong is None else torch.where(self._wrong > 0, self._wrong, number)
        )
        return matrix

    def _check_counted(self) -> None:
        """Raise for the first image that :meth:`_count_later` found out of range."""
        if self._wrong is not None and int(self._wrong):
            count = len(self.class_names)
            raise UserError(
                "classes",
                self._names[int(self._wrong) - 1],
                f"a prediction or a label is outside "
                f"0..{count - 1} and not ignore_index ({self.ignore_index}); check that "
                "num_classes of the heads is that of the data set, the label file and, in the "
                "config, the data set's classes, reduce_zero_label and ignore_index",
            )

    def _is_padding(self, size: int) -> bool:
        """Whether this process's last image is one that the sampler gave out a second time.

        MMEngine's sampler gives process r of w the images r, r + w, r + 2w, ... of the list that
        was filled up to a multiple of w, so its last one stands at r + w * (number - 1).
        """
        return get_rank() + get_world_size() * (self._images - 1) >= size

    def evaluate(self, size: int) -> dict[str, float]:
        """Sum over the processes, log the table, write the JSON and start anew.

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
        num_classes = len(names)
        total = torch.zeros(num_classes * num_classes + 2, dtype=torch.int64)
        if self._matrix is not None:
            total[:-2] += self._matrix.reshape(-1).cpu()
        images, pixels = max(self._images - 1, 0), self._pixels
        if self._last is not None and not self._is_padding(size):
            total[:-2] += self._last.reshape(-1).cpu()
            images, pixels = images + 1, pixels + self._last_pixels
        total[-2], total[-1] = images, pixels
        kept = self._gather_images(size) if self._keeps_images else []
        self._reset()
        all_reduce(total)  # integers: exact, and equal on every process

        images, pixels = int(total[-2]), int(total[-1])
        if images == 0:
            raise UserError(
                "empty",
                "no image was evaluated",
                "the data set to evaluate is empty; check its data_root, data_prefix and split",
            )
        logger = MMLogger.get_current_instance()
        if images != size:
            logger.warning(
                "SegmentationMetric scored %d images of a data set of %d: the sampler of the "
                "evaluation left some out or gave some out twice",
                images,
                size,
            )
        matrix = total[:-2].reshape(num_classes, num_classes)
        metrics = self.compute_metrics([matrix])
        assert self.last_result is not None
        self.last_result.update(images=images, pixels=pixels)
        metrics.update(self._score_images(kept, names))
        self.last_result.update(metrics)
        logger.info(
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
        return {f"{self.prefix}/{k}" if self.prefix else k: v for k, v in metrics.items()}

    def _score_images(self, kept: Sequence[_Image], names: list[str]) -> dict[str, float]:
        """The numbers that need the images one by one; sets ``last_images``."""
        self.last_images = None
        if not kept:
            return {}
        assert self.last_result is not None
        counts = np.stack([image.counts for image in kept])
        self.last_images = ImageCounts(
            [image.name for image in kept], names, counts[:, 0], counts[:, 1], counts[:, 2]
        )
        metrics: dict[str, float] = {}
        if "boundary_IoU" in self.more:
            both, union = np.sum([image.boundary for image in kept], axis=0)
            iou = [100 * int(b) / int(u) if u else None for b, u in zip(both, union, strict=True)]
            for row, value in zip(self.last_result["classes"], iou, strict=True):
                row["boundary_IoU"] = value
            scored = [value for value in iou if value is not None]
            metrics["boundary_IoU"] = sum(scored) / len(scored) if scored else math.nan
        if "image_mIoU" in self.more:
            metrics["image_mIoU"] = _percent(image_mean_iou(self.last_images))
        if "ECE" in self.more:
            bins = np.sum([image.calibration for image in kept], axis=0)
            error, worst = calibration_error(bins)
            metrics["ECE"], metrics["MCE"] = _percent(error), _percent(worst)
            self.last_result["calibration"] = [
                {
                    "above": b / self.calibration_bins,
                    "pixels": int(number),
                    "accuracy": _percent(right / number) if number else None,
                    "confidence": _percent(units / 2**24 / number) if number else None,
                }
                for b, (number, right, units) in enumerate(bins.T.tolist())
            ]
        if self.bootstrap:
            low, high = bootstrap_interval(self.last_images, self.bootstrap)
            self.last_result["mIoU_interval"] = [_percent(low), _percent(high)]
            metrics["mIoU_low"], metrics["mIoU_high"] = _percent(low), _percent(high)
        return metrics

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
                "classes",
                f"every pixel of the evaluated labels is ignore_index ({self.ignore_index})",
                "there is nothing to score; check the label files and reduce_zero_label",
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
                    row[name] = _no_nan(_percent(value))
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
            "IoU": _no_nan(_percent(scores.iou[i])),
            "Acc": _no_nan(_percent(scores.acc[i])),
            "intersection": int(scores.intersection[i]),
            "union": int(scores.union[i]),
            "label": int(scores.label_pixels[i]),
            "predicted": int(scores.pred_pixels[i]),
        }
        for i, name in enumerate(names)
    ]


def class_table(result: Mapping[str, Any]) -> str:
    """The per-class table of a ``last_result``, aligned, with the means in its last row.

    Args:
        result: ``SegmentationMetric.last_result`` or the JSON read back.

    Returns:
        Lines of text: class, IoU and Acc in percent (``-`` where a class cannot be scored) and
        the class's share of the labelled pixels in percent.
    """

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    labelled = result["labelled_pixels"]
    first = result["classes"][0] if result["classes"] else {}
    more = [name for name in (*_PER_CLASS, "boundary_IoU") if name in first]
    table = PrettyTable(["class", "IoU", "Acc", "% of pixels", *more])
    table.align = "r"
    table.align["class"] = "l"
    for row in result["classes"]:
        share = 100 * row["label"] / labelled
        extra = [number(row[name]) for name in more]
        name = printable(str(row["name"]))
        table.add_row([name, number(row["IoU"]), number(row["Acc"]), number(share), *extra])
    table.add_divider()
    means = [number(result[name]) for name in more]
    table.add_row(["mean", number(result["mIoU"]), number(result["mAcc"]), "", *means])
    blank = [""] * len(more)
    table.add_row(["all pixels (pixAcc)", "", number(result["pixAcc"]), "100.00", *blank])
    lines = [table.get_string()]
    single = [name for name in ("fwIoU", "image_mIoU", "ECE", "MCE") if name in result]
    if single:
        lines.append(", ".join(f"{name} {number(result[name])}" for name in single))
    if "mIoU_interval" in result:
        low, high = result["mIoU_interval"]
        lines.append(f"mIoU {number(low)} to {number(high)} with 95% confidence over the images")
    return "\n".join(lines)


def write_confusion(
    names: Sequence[str], matrix: Sequence[Sequence[int]], path: str | os.PathLike[str]
) -> None:
    """Write a confusion matrix as CSV, whole or not at all.

    The first row and column hold the names of the classes; rows are labels, columns predictions.

    Args:
        names: Of the classes.
        matrix: C rows of C pixel counts.
        path: The file; its folder is made.

    Raises:
        UserError: It cannot be written.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["label \\ predicted", *names])
    for name, row in zip(names, matrix, strict=True):
        writer.writerow([name, *row])
    atomic_write(path, buffer.getvalue())


def _to_json(result: Mapping[str, Any]) -> str:
    """Strict JSON with one line a value, and one line an entry of each list."""

    def dump(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def strict(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {str(k): strict(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [strict(v) for v in value]
        return value

    lines = []
    for key, value in strict(result).items():
        if isinstance(value, list) and value:
            rows = ",\n    ".join(dump(v) for v in value)
            lines.append(f"  {dump(key)}: [\n    {rows}\n  ]")
        else:
            lines.append(f"  {dump(key)}: {dump(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _make_parent(path: Path) -> None:
    if path.is_dir():
        raise UserError(
            "wrong-path-type", path, "is a folder; name a file for the JSON of the evaluation"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            "not-writable",
            path,
            f"its folder cannot be made ({error.strerror}); choose another place for the "
            "JSON of the evaluation",
        ) from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(
            "not-writable",
            path,
            "its folder cannot be written; choose another place for the JSON of the evaluation",
        )


def write_result(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a result as strict JSON (NaN and infinity become null), whole or not at all.

    Args:
        result: ``SegmentationMetric.last_result``, or it with more entries.
        path: The file; its folder is made.

    Raises:
        UserError: The file cannot be written; the message names it.
    """
    atomic_write(path, _to_json(result))
