# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""IoU, F1 and average precision of classes that may overlap."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from ..registry import METRICS
from .counting import CountingMetric
from .results import class_table, make_parent, write_result

__all__ = ["MultilabelMetric", "average_precision", "score_bins"]


def score_bins(chances: Tensor, bins: int) -> Tensor:
    """The bin of each probability, int64: bin b holds [b / bins, (b + 1) / bins), the last also 1.

    With a power of two for ``bins`` no rounding moves a number across a border.
    """
    return (chances.double() * bins).long().clamp_(max=bins - 1)


def average_precision(histogram: NDArray[np.int64]) -> float:
    """Average precision of a class from how its pixels' probabilities are distributed.

    The sum over bins, from the highest down, of precision at the bin's lower border times the gain
    in recall: the definition of ``sklearn.metrics.average_precision_score``, of probabilities that
    are rounded down to the border of their bin.

    Args:
        histogram: (2, B) pixels that are not of the class, and that are, by bin (ascending).

    Returns:
        0 to 1; NaN without a pixel of the class.
    """
    rest, own = (counts[::-1].astype(np.float64) for counts in histogram)
    hits, all_of_them = own.cumsum(), (own + rest).cumsum()
    if not hits[-1]:
        return math.nan
    precision = hits / np.maximum(all_of_them, 1)
    return float((own * precision).sum() / hits[-1])


@METRICS.register_module()
class MultilabelMetric(CountingMetric):
    """IoU, F1 and average precision of each class and their means, in percent.

    For segmentors with ``multilabel=True``. IoU, F1, precision and recall are those of the masks at
    the model's thresholds; the average precision is that of the probabilities, from histograms of
    ``bins`` bins (:func:`average_precision`). All counts are integers, summed exactly over the
    images and processes (:class:`.counting.CountingMetric`).

    Conventions: pixels labelled ``ignore_index`` for a class do not count for it; a class that is
    neither in the labels nor predicted is left out of mIoU and mF1 (``-`` in the table, ``null`` in
    JSON), one that is predicted but never labelled counts as 0; a class that is never labelled is
    left out of mAP.

    After :meth:`evaluate`, ``last_result`` holds what is written as JSON, on every process:
    ``mIoU``, ``mF1``, ``mAP``, ``images``, ``pixels``, ``labelled_pixels`` (of any class),
    ``ignore_index``, ``bins``, and ``classes`` with ``name``, ``IoU``, ``F1``, ``precision``,
    ``Acc`` (recall), ``AP`` and the pixels ``intersection``, ``union``, ``label``, ``predicted``.

    Args:
        ignore_index: Label value left out.
        bins: Of the histograms; a power of two.
        output_json: File for the result of each evaluation; None writes none.
        collect_device: As MMEngine's metrics; not used.
        prefix: Put before the names of the returned values.

    Raises:
        UserError: An option is wrong, or the file cannot be written.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        bins: int = 4096,
        output_json: str | os.PathLike[str] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not (isinstance(bins, int) and 2 <= bins <= 1 << 20 and bins.bit_count() == 1):
            raise UserError("argument", "MultilabelMetric, bins", "allowed: a power of two, 2 on")
        self.ignore_index, self.bins = ignore_index, bins
        self.output_json = None if output_json is None else Path(output_json)
        if self.output_json is not None and is_main_process():
            make_parent(self.output_json)

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Add the counts of one batch.

        Args:
            data_batch: Not used.
            data_samples: Dicts or data elements with ``pred_sem_seg.data`` (C, H, W) of 0 and 1,
                ``seg_logits.data`` (C, H, W) probabilities, and ``gt_sem_seg.data`` (C, H, W) of
                0, 1 and ``ignore_index``.

        Raises:
            UserError: Something of these is missing or of another size; names the image.
        """
        classes = len(self.class_names)
        for sample in data_samples:
            if isinstance(sample, BaseDataElement):
                sample = sample.to_dict()
            image = str(sample.get("img_path") or f"image {self._images + 1}")
            masks, chances, labels = (
                _planes(sample, key, classes, image)
                for key in ("pred_sem_seg", "seg_logits", "gt_sem_seg")
            )
            if not masks.shape == chances.shape == labels.shape:
                sizes = ["x".join(map(str, one.shape[1:])) for one in (masks, labels)]
                said = f"the prediction has {sizes[0]} pixels, the label {sizes[1]} (height x width"
                said += "); put LoadMultilabel after Resize in the test pipeline, or correct the "
                raise UserError("size-mismatch", image, f"{said}files")
            self._add(self._count(masks, chances, labels, image), masks[0].numel())

    def _count(self, masks: Tensor, chances: Tensor, labels: Tensor, image: str) -> Tensor:
        """(C * (2 * bins + 3) + 1,) counts of an image.

        Of each class the histograms of its probability off and on the class, and the pixels of both
        masks, of the label and of the prediction; then the pixels that are labelled at all.
        """
        labels = labels.to(chances.device)
        valid = labels != self.ignore_index
        wrong = labels[valid & (labels != 0) & (labels != 1)]
        if wrong.numel():
            said = f"holds {int(wrong[0])} in a plane of its labels, which is not 0, 1 or ignored"
            raise UserError("label", image, f"{said} ({self.ignore_index})")
        if not bool(((chances >= 0) & (chances <= 1)).all()):
            said = "the model's scores are not probabilities; has the training diverged?"
            raise UserError("model-output", image, said)
        parts = []
        for chance, mask, label, use in zip(
            chances, masks.to(chances.device), labels, valid, strict=True
        ):
            truth, guess = label[use] == 1, mask[use] == 1
            bins = score_bins(chance[use], self.bins) + self.bins * truth
            parts.append(torch.bincount(bins, minlength=2 * self.bins))
            parts.append(torch.stack([(truth & guess).sum(), truth.sum(), guess.sum()]))
        parts.append(valid.any(0).sum().reshape(1))
        return torch.cat(parts)

    def evaluate(self, size: int) -> dict[str, float]:
        """Sum over the processes, log the table, write the file and start anew.

        Args:
            size: Number of images of the data set.

        Returns:
            ``mIoU``, ``mF1`` and ``mAP`` in percent, the same on every process.

        Raises:
            UserError: No image was evaluated, no pixel is labelled, or the JSON cannot be written.
        """
        length = len(self.class_names) * (2 * self.bins + 3) + 1
        counts, images, pixels = self._summed(size, (length,))
        metrics = self.compute_metrics([counts])
        assert self.last_result is not None
        self.last_result.update(images=images, pixels=pixels)
        MMLogger.get_current_instance().info(
            "%d images, %d labelled of %d pixels\n%s",
            images, self.last_result["labelled_pixels"], pixels, class_table(self.last_result),
        )  # fmt: skip
        if self.output_json is not None and is_main_process():
            write_result(self.last_result, self.output_json)
        return self._prefixed(metrics)

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """Scores of the sum of counts.

        Args:
            results: (C * (2 * bins + 3) + 1,) int64 counts of images; their sum is scored and set
                as ``last_result``.

        Returns:
            ``mIoU``, ``mF1`` and ``mAP`` in percent.

        Raises:
            UserError: No pixel is labelled.
        """
        names = self.class_names
        counts = torch.stack(list(results)).sum(dim=0)
        labelled = int(counts[-1])
        if not labelled:
            said = f"every label is ignore_index ({self.ignore_index}): there is nothing to score"
            raise UserError("label", "the data set", f"{said}; check the label files")
        table = counts[:-1].reshape(len(names), -1).cpu().numpy()
        rows = [_row(name, row, self.bins) for name, row in zip(names, table, strict=True)]
        metrics = {f"m{name}": _mean([row[name] for row in rows]) for name in ("IoU", "F1", "AP")}
        self.last_result = {
            **metrics, "multilabel": True, "images": None, "pixels": None,
            "labelled_pixels": labelled, "ignore_index": self.ignore_index, "bins": self.bins,
            "classes": rows,
        }  # fmt: skip
        return metrics


def _planes(sample: Mapping[str, Any], key: str, classes: int, image: str) -> Tensor:
    """The planes (C, H, W) under a key of a sample."""
    if key not in sample:
        if key == "gt_sem_seg":
            said = (
                "has no label to evaluate against; add LoadMultilabel to the test pipeline and "
                "seg_map_path to the data set"
            )
            raise UserError("dataset", image, said)
        raise UserError("model-output", image, f"the model returned no {key}")
    data = torch.as_tensor(sample[key]["data"])
    if data.ndim != 3 or len(data) != classes:
        said = f"{key} is {tuple(data.shape)}, not ({classes}, H, W) for the {classes} classes; "
        said += "MultilabelMetric needs model.multilabel=True, labels that LoadMultilabel loads, "
        raise UserError("config-conflict", image, f"{said}and as many classes everywhere")
    return data


def _row(name: str, counts: NDArray[np.int64], bins: int) -> dict[str, Any]:
    both, label, predicted = map(int, counts[-3:])
    union = label + predicted - both
    average = average_precision(counts[:-3].reshape(2, bins))
    return {
        "name": name,
        "IoU": 100 * both / union if union else None,
        "F1": 200 * both / (label + predicted) if union else None,
        "precision": 100 * both / predicted if predicted else None,
        "Acc": 100 * both / label if label else None,
        "AP": None if math.isnan(average) else 100 * average,
        "intersection": both,
        "union": union,
        "label": label,
        "predicted": predicted,
    }


def _mean(values: Sequence[float | None]) -> float:
    scored = [value for value in values if value is not None]
    return sum(scored) / len(scored) if scored else math.nan
