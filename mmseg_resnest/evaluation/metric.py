# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""mIoU, pixAcc and mAcc over a data set and all processes, from one integer matrix."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement
from prettytable import PrettyTable
from torch import Tensor

from mmseg_resnest.errors import UserError
from mmseg_resnest.evaluation.confusion_matrix import (
    SegmentationScores,
    confusion_matrix,
    scores_from_confusion,
)
from mmseg_resnest.registry import METRICS

__all__ = ["SegmentationMetric", "class_table", "write_result"]


def _percent(fraction: float) -> float:
    return 100.0 * float(fraction)


def _no_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _label_map(sample: Mapping[str, Any], key: str) -> Tensor:
    """The (H, W) map under ``sample[key]['data']``, which may be (1, H, W) or an array."""
    data = torch.as_tensor(sample[key]["data"])
    if data.ndim == 3 and data.shape[0] == 1:
        data = data[0]
    if data.ndim != 2:
        raise UserError(
            f"{sample.get('img_path', 'an image')}: {key} has shape {tuple(data.shape)}; "
            "it must be (H, W) or (1, H, W)"
        )
    return data


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
    * ``confusion_matrix``: C lists of C integers, rows = label, columns = prediction.

    Args:
        ignore_index: Label value left out.
        output_json: File that each evaluation writes its result to; None writes none.
        collect_device: Kept for the configs of MMEngine's metrics; the sum over processes runs
            where their backend needs it.
        prefix: Put before the names of the returned values, as ``prefix/mIoU``.

    Raises:
        UserError: ``output_json`` cannot be written.
    """

    default_prefix = ""  # None would make MMEngine warn about a missing prefix

    def __init__(
        self,
        ignore_index: int = 255,
        output_json: str | os.PathLike[str] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index
        self.output_json = None if output_json is None else Path(output_json)
        if self.output_json is not None and is_main_process():
            # Now rather than after hours of evaluation.
            _make_parent(self.output_json)
        self.last_result: dict[str, Any] | None = None
        self._reset()

    def _reset(self) -> None:
        self.results.clear()
        self._matrix: Tensor | None = None  # (C, C) sum over the images but the last
        self._last: Tensor | None = None  # (C, C) of the last image
        self._pixels = 0
        self._last_pixels = 0
        self._images = 0

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, from the data set's metainfo."""
        classes = (self.dataset_meta or {}).get("classes")
        if not classes:
            raise UserError(
                "the data set to evaluate names no classes; give it metainfo=dict(classes=(...)) "
                "in the config"
            )
        return [str(name) for name in classes]

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Add the confusion matrices of one batch.

        Args:
            data_batch: Not used.
            data_samples: Samples, as dicts or data elements, with ``pred_sem_seg.data`` and
                ``gt_sem_seg.data`` of shape (1, H, W) or (H, W) each.

        Raises:
            UserError: A sample has no label, its sizes differ or a value is out of range; the
                message names the image.
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
            self._images += 1

    def _count(self, sample: Mapping[str, Any], num_classes: int) -> tuple[Tensor, int]:
        """Confusion matrix and number of pixels of one image."""
        image = sample.get("img_path") or f"image {self._images + 1} of the evaluation"
        if "pred_sem_seg" not in sample:
            raise UserError(
                f"{image}: the model returned no pred_sem_seg; SegmentationMetric needs a "
                "segmentation model"
            )
        if "gt_sem_seg" not in sample:
            raise UserError(
                f"{image}: there is no label to evaluate against. A test split without "
                "annotations cannot be scored: evaluate another split, or write the predictions "
                "with tools/predict.py. If there are labels, the test pipeline lacks "
                "LoadAnnotations, or the data set its seg_map_path"
            )
        pred = _label_map(sample, "pred_sem_seg")
        label = _label_map(sample, "gt_sem_seg")
        if pred.shape != label.shape:
            raise UserError(
                f"{image}: the prediction has {pred.shape[0]}x{pred.shape[1]} pixels, the label "
                f"{label.shape[0]}x{label.shape[1]} (height x width). Either image and label file "
                "differ in size, or the test pipeline resizes the label: put LoadAnnotations "
                "after Resize"
            )
        try:
            matrix = confusion_matrix(pred, label, num_classes, self.ignore_index)
        except UserError as error:
            seg_map = sample.get("seg_map_path")
            where = f"{image} (label {seg_map})" if seg_map else str(image)
            raise UserError(f"{where}: {error}") from None
        return matrix, pred.numel()

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
            UserError: No image was evaluated, no pixel is labelled, or the JSON cannot be
                written.
        """
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
        self._reset()
        all_reduce(total)  # integers: exact, and equal on every process

        images, pixels = int(total[-2]), int(total[-1])
        if images == 0:
            raise UserError(
                "no image was evaluated: the data set to evaluate is empty; check its data_root, "
                "data_prefix and split"
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
        logger.info(
            "%d images, %d labelled of %d pixels\n%s",
            images,
            self.last_result["labelled_pixels"],
            pixels,
            class_table(self.last_result),
        )
        if self.output_json is not None and is_main_process():
            write_result(self.last_result, self.output_json)
        return {f"{self.prefix}/{k}" if self.prefix else k: v for k, v in metrics.items()}

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
                f"every pixel of the evaluated labels is ignore_index ({self.ignore_index}): "
                "there is nothing to score; check the label files and reduce_zero_label"
            )
        metrics = {
            "mIoU": _percent(scores.mean_iou),
            "pixAcc": _percent(scores.pix_acc),
            "mAcc": _percent(scores.mean_acc),
        }
        self.last_result = {
            **metrics,
            "images": None,
            "pixels": None,
            "labelled_pixels": int(scores.label_pixels.sum()),
            "correct_pixels": int(scores.intersection.sum()),
            "ignore_index": self.ignore_index,
            "classes": _class_rows(self.class_names, scores),
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
    table = PrettyTable(["class", "IoU", "Acc", "% of pixels"])
    table.align = "r"
    table.align["class"] = "l"
    for row in result["classes"]:
        share = 100 * row["label"] / labelled
        table.add_row([row["name"], number(row["IoU"]), number(row["Acc"]), number(share)])
    table.add_divider()
    table.add_row(["mean", number(result["mIoU"]), number(result["mAcc"]), ""])
    table.add_row(["all pixels (pixAcc)", "", number(result["pixAcc"]), "100.00"])
    return table.get_string()


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
        raise UserError(f"{path}: is a folder; name a file for the JSON of the evaluation")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: its folder cannot be made ({error.strerror}); choose another place for the "
            "JSON of the evaluation"
        ) from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(
            f"{path}: its folder cannot be written; choose another place for the JSON of the "
            "evaluation"
        )


def write_result(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a result as strict JSON (NaN and infinity become null), whole or not at all.

    Args:
        result: ``SegmentationMetric.last_result``, or it with more entries.
        path: The file; its folder is made. A reader sees the old file or the new one, never a
            part: the text goes to a temporary file beside it, which then takes its name.

    Raises:
        UserError: The file cannot be written; the message names it.
    """
    path = Path(path)
    _make_parent(path)
    text = _to_json(result)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
        # Temporary files are private; the result is for whom the user's umask lets read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another place or make room"
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
