# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The counts of each image: how sure a score is, and whether two runs differ.

IoU needs three numbers a class of each image, not its whole confusion matrix: pixels of the class
that were found, that are labelled and that were predicted.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..io.atomic import atomic_open
from .results_file import RESULTS_FILE, read_results_file

__all__ = ["ImageCounts", "bootstrap_interval", "class_mean", "image_draws", "image_mean_iou"]

FILE_NAME = "images.npz"
_DRAWS_AT_ONCE = 128
_COUNTS = ("intersection", "label", "predicted")


@dataclass(frozen=True)
class ImageCounts:
    """Names of N images and C classes, and (N, C) int64 counts of the labelled pixels."""

    images: list[str]
    classes: list[str]
    intersection: NDArray[np.int64]
    """Pixels labelled and predicted as the class."""
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]

    @property
    def union(self) -> NDArray[np.int64]:
        """(N, C) pixels labelled or predicted as the class."""
        return self.label + self.predicted - self.intersection

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed ``.npz``."""
        with atomic_open(path) as file:
            np.savez_compressed(
                file,
                images=np.array(self.images, dtype=np.str_),
                classes=np.array(self.classes, dtype=np.str_),
                **{name: getattr(self, name).astype(np.uint32) for name in _COUNTS},
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImageCounts:
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Args:
            path: The file, or the folder that holds ``images.npz`` (or ``test/images.npz``).

        Raises:
            UserError: It is not there, or holds something else; or the ``test`` of a run's folder
                is of other weights.
        """
        file = Path(path)
        if file.is_dir():
            places = [file / FILE_NAME, file / "test" / FILE_NAME]
            file = next((p for p in places if p.is_file()), places[0])
            if file == places[1]:
                _check_of_run(Path(path))
        if not file.is_file():
            message = "does not exist; run mmseg-resnest test first"
            results = file.parent / RESULTS_FILE  # a training writes one as well
            if results.is_file() and read_results_file(results).get("task") == "test":
                message = "does not exist: that evaluation scored nothing, or not image by image"
            raise UserError("not-found", file, message)
        try:
            with np.load(file, allow_pickle=False) as data:
                arrays = [data[name].astype(np.int64) for name in _COUNTS]
                counts = cls(data["images"].tolist(), data["classes"].tolist(), *arrays)
        except (
            *(OSError, EOFError, ValueError, KeyError, TypeError, MemoryError),
            zipfile.BadZipFile,
        ) as error:
            message = f"does not hold counts of images ({error}); evaluate the run again"
            raise UserError("format", file, message) from error
        shape = (len(counts.images), len(counts.classes))
        if any(a.shape != shape for a in arrays):
            raise UserError("format", file, "its arrays do not fit; evaluate the run again")
        return counts

    def iou(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """IoU of each class: (C,) of all images, or (B, C) of each of B draws of images.

        ``weights`` (B, N) is how often each draw holds each image. NaN where a class is neither
        labelled nor predicted.
        """
        # float64 holds these sums exactly (below 2**53), and its product is far faster than int64.
        both, union = self.intersection, self.union
        if weights is None:
            top, bottom = both.sum(axis=0), union.sum(axis=0)
        else:
            top, bottom = weights @ both.astype(np.float64), weights @ union.astype(np.float64)
        nothing = np.full(bottom.shape, np.nan)
        return np.divide(top, bottom, out=nothing, where=bottom > 0)


def _check_of_run(folder: Path) -> None:
    """Raise UserError if an evaluation in the folder of a run is of another one."""
    files = [folder / RESULTS_FILE, folder / "test" / RESULTS_FILE]
    train, test = (read_results_file(file) if file.is_file() else {} for file in files)
    if train.get("run_id") and test.get("run_id", train["run_id"]) != train["run_id"]:
        message = "evaluates other weights than that run's; evaluate the run again"
        raise UserError("run", folder / "test", message)


def image_mean_iou(counts: ImageCounts) -> float:
    """Mean over images of the image's own mIoU, as a fraction of 1.

    An image's mIoU is the mean of IoU over the classes labelled or predicted in it; images
    without a labelled pixel are left out. Every image counts the same, whatever its size.

    Source: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC
    2013, section 3.
    """
    scored = counts.label.sum(axis=1) > 0
    if not scored.any():
        return float("nan")
    union = counts.union[scored]
    iou = counts.intersection[scored] / np.maximum(union, 1)
    return float((iou.sum(axis=1) / (union > 0).sum(axis=1)).mean())


def image_draws(number: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """(B, N) weights of images drawn with replacement, in pieces."""
    random = np.random.default_rng(seed)
    for start in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - start)
        yield random.multinomial(number, np.full(number, 1 / number), size=count).astype(np.float64)


def class_mean(iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    number = (~np.isnan(iou)).sum(axis=-1)
    return np.where(number > 0, np.nansum(iou, axis=-1) / np.maximum(number, 1), np.nan)


def bootstrap_interval(counts: ImageCounts, draws: int = 1000) -> tuple[float, float]:
    """95% confidence interval of mIoU over the choice of images, as fractions of 1.

    The percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
    section 13.3): images are drawn with replacement, as many as there are, and mIoU is computed
    of their summed counts.
    """
    means = np.concatenate(
        [class_mean(counts.iou(w)) for w in image_draws(len(counts.images), draws, seed=0)]
    )
    low, high = np.nanquantile(means, [0.025, 0.975])
    return float(low), float(high)
