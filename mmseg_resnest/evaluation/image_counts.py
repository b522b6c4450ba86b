# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The counts of each image: how sure a score is, and whether two runs differ.

IoU needs three numbers a class of each image, not its whole confusion matrix: pixels of the class
that were found, that are labelled and that were predicted.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prettytable import PrettyTable

from mmseg_resnest.errors import UserError
from mmseg_resnest.io.atomic import atomic_open
from mmseg_resnest.io.text import printable

__all__ = [
    "Comparison",
    "ImageCounts",
    "bootstrap_interval",
    "compare_counts",
    "comparison_table",
    "image_mean_iou",
]

FILE_NAME = "images.npz"
_DRAWS_AT_ONCE = 128


@dataclass(frozen=True)
class ImageCounts:
    """Counts of N images and C classes, among the labelled pixels.

    Attributes:
        images: Names of the images.
        classes: Names of the classes.
        intersection: (N, C) int64 pixels labelled and predicted as the class.
        label: (N, C) int64 pixels labelled as the class.
        predicted: (N, C) int64 labelled pixels predicted as the class.
    """

    images: list[str]
    classes: list[str]
    intersection: NDArray[np.int64]
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed ``.npz``, whole or not at all.

        Raises:
            UserError: It cannot be written.
        """
        with atomic_open(path) as file:
            np.savez_compressed(
                file,
                images=np.array(self.images, dtype=np.str_),
                classes=np.array(self.classes, dtype=np.str_),
                intersection=self.intersection.astype(np.uint32),
                label=self.label.astype(np.uint32),
                predicted=self.predicted.astype(np.uint32),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImageCounts:
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Args:
            path: The file, or the folder that holds ``images.npz`` (or ``test/images.npz``).

        Raises:
            UserError: It is not there, or holds something else.
        """
        file = Path(path)
        if file.is_dir():
            places = [file / FILE_NAME, file / "test" / FILE_NAME]
            file = next((p for p in places if p.is_file()), places[0])
        if not file.is_file():
            raise UserError(
                "not-found",
                file,
                "does not exist; mmseg-resnest test writes it beside results.json: "
                "evaluate the run with it first",
            )
        try:
            with np.load(file, allow_pickle=False) as data:
                arrays = [data[k].astype(np.int64) for k in ("intersection", "label", "predicted")]
                counts = cls(data["images"].tolist(), data["classes"].tolist(), *arrays)
        except (OSError, ValueError, KeyError, TypeError, MemoryError, zipfile.BadZipFile) as error:
            raise UserError(
                "input", file, f"does not hold the counts that mmseg-resnest test writes ({error})"
            ) from error
        shape = (len(counts.images), len(counts.classes))
        if any(a.shape != shape for a in arrays):
            raise UserError(
                "input", file, "its arrays do not fit one another; evaluate the run again"
            )
        return counts

    def iou(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """IoU of each class, of all images or of each of B draws of images.

        Args:
            weights: (B, N) how often each draw holds each image; None: each image once.

        Returns:
            (C,) or (B, C) fractions of 1; NaN where a class is neither labelled nor predicted.
        """
        # float64 holds these sums exactly (below 2**53), and its product is far faster than int64.
        both, union = self.intersection, self.label + self.predicted - self.intersection
        if weights is None:
            top, bottom = both.sum(axis=0), union.sum(axis=0)
        else:
            top, bottom = weights @ both.astype(np.float64), weights @ union.astype(np.float64)
        nothing = np.full(bottom.shape, np.nan)
        return np.divide(top, bottom, out=nothing, where=bottom > 0)


def image_mean_iou(counts: ImageCounts) -> float:
    """Mean over images of the image's own mIoU, as a fraction of 1.

    An image's mIoU is the mean of IoU over the classes labelled or predicted in it; images
    without a labelled pixel are left out. Every image counts the same, whatever its size.

    Source: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC
    2013, section 3.
    """
    union = counts.label + counts.predicted - counts.intersection
    present = union > 0
    iou = np.where(present, counts.intersection / np.maximum(union, 1), 0.0)
    number = present.sum(axis=1)
    scored = counts.label.sum(axis=1) > 0
    if not scored.any():
        return float("nan")
    return float((iou[scored].sum(axis=1) / number[scored]).mean())


def _draws(number: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """(B, N) weights of images drawn with replacement, in pieces."""
    random = np.random.default_rng(seed)
    for start in range(0, draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, draws - start)
        yield random.multinomial(number, np.full(number, 1 / number), size=count).astype(np.float64)


def _mean(iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    number = (~np.isnan(iou)).sum(axis=-1)
    return np.where(number > 0, np.nansum(iou, axis=-1) / np.maximum(number, 1), np.nan)


def bootstrap_interval(
    counts: ImageCounts, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval of mIoU over the choice of images, as fractions of 1.

    The percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
    section 13.3): images are drawn with replacement, as many as there are, and mIoU is computed
    of their summed counts.

    Args:
        counts: Of the images.
        draws: How often images are drawn.
        level: Of confidence.
        seed: Of the draws; the same gives the same interval.
    """
    means = np.concatenate([_mean(counts.iou(w)) for w in _draws(len(counts.images), draws, seed)])
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """Run B against run A on one score, in percent.

    Attributes:
        name: A class, or ``mIoU``.
        a: The score of run A; NaN where it has none.
        b: Of run B.
        low: Lower end of the interval of the difference B - A.
        high: Upper end.
        p: Two-sided p-value of "no difference".
        adjusted: ``p`` of a class after Holm's correction for the number of classes.
    """

    name: str
    a: float
    b: float
    low: float
    high: float
    p: float
    adjusted: float

    @property
    def difference(self) -> float:
        """B - A."""
        return self.b - self.a


def compare_counts(
    a: ImageCounts, b: ImageCounts, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> list[Comparison]:
    """Compare two runs on the same images, class by class and in mIoU.

    Paired bootstrap: each draw takes the same images for both runs. The p-value is twice the
    share of draws in which the difference has the other sign or is 0, counting one draw more on
    each side (Efron and Tibshirani, 1993, section 15.4 and 16). Holm's step-down correction holds
    the chance of any false claim among the classes.

    Args:
        a: Counts of run A.
        b: Of run B.
        draws: How often images are drawn.
        level: Of the intervals.
        seed: Of the draws.

    Returns:
        mIoU first, then every class.

    Raises:
        UserError: The runs have other classes, images or labels.
    """
    order = _same_images(a, b)
    b = ImageCounts(a.images, b.classes, b.intersection[order], b.label[order], b.predicted[order])
    if (a.label != b.label).any():
        first = a.images[int(np.flatnonzero((a.label != b.label).any(axis=1))[0])]
        raise UserError(
            "input",
            f"the runs were evaluated against other labels (first in {first})",
            "evaluate both with the same data and config",
        )
    differences = []
    for weights in _draws(len(a.images), draws, seed):
        one, two = a.iou(weights), b.iou(weights)
        differences.append(np.column_stack([_mean(two) - _mean(one), two - one]))
    drawn = np.concatenate(differences)
    total_a, total_b = a.iou(), b.iou()
    scores_a = np.concatenate([[_mean(total_a)], total_a])
    scores_b = np.concatenate([[_mean(total_b)], total_b])
    p = np.array([_p_value(column) for column in drawn.T])
    adjusted = np.concatenate([p[:1], _holm(p[1:])])
    results = []
    for k, name in enumerate(["mIoU", *a.classes]):
        column = drawn[:, k][~np.isnan(drawn[:, k])]
        low, high = (
            np.quantile(column, [(1 - level) / 2, (1 + level) / 2]) if len(column) else [np.nan] * 2
        )
        results.append(
            Comparison(
                name,
                100 * float(scores_a[k]),
                100 * float(scores_b[k]),
                100 * float(low),
                100 * float(high),
                float(p[k]),
                float(adjusted[k]),
            )
        )
    return results


def _same_images(a: ImageCounts, b: ImageCounts) -> list[int]:
    """Where each image of A is in B."""
    if a.classes != b.classes:
        raise UserError(
            "classes",
            f"the runs have other classes ({len(a.classes)} and {len(b.classes)}, or other names)",
            "they cannot be compared",
        )
    # Folders may have moved: the file's name decides, as long as it names one image.
    names = [[os.path.basename(i) for i in run.images] for run in (a, b)]
    if len(set(names[0])) != len(names[0]) or len(set(names[1])) != len(names[1]):
        names = [a.images, b.images]
    place = {name: i for i, name in enumerate(names[1])}
    missing = [name for name in names[0] if name not in place]
    if missing or len(names[0]) != len(names[1]):
        raise UserError(
            "input",
            "",
            f"the runs were evaluated on other images ({len(a.images)} and {len(b.images)}"
            f"{', ' + missing[0] + ' only in the first' if missing else ''}): evaluate both on the "
            "same split",
        )
    return [place[name] for name in names[0]]


def _p_value(differences: NDArray[np.float64]) -> float:
    drawn = differences[~np.isnan(differences)]
    if not len(drawn):
        return float("nan")
    below = int((drawn <= 0).sum()) + 1
    above = int((drawn >= 0).sum()) + 1
    return min(1.0, 2 * min(below, above) / (len(drawn) + 1))


def _holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's step-down adjustment (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted = p.copy()
    real = np.flatnonzero(~np.isnan(p))
    ranked = real[np.argsort(p[real], kind="stable")]
    highest = 0.0
    for rank, k in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * float(p[k])))
        adjusted[k] = highest
    return adjusted


def comparison_table(rows: Sequence[Comparison], level: float = 0.95, alpha: float = 0.05) -> str:
    """The comparison as aligned text; ``*`` marks what is significant after the correction.

    Args:
        rows: From :func:`compare_counts`.
        level: Of the intervals, for the heading.
        alpha: The bound on the adjusted p-value.
    """

    def number(value: float, form: str = ".2f") -> str:
        return "-" if np.isnan(value) else format(value, form)

    table = PrettyTable(
        ["class", "A", "B", "B - A", f"{100 * level:g}% interval", "p", "p adj", ""]
    )
    table.align = "r"
    table.align["class"] = "l"

    def cells(row: Comparison) -> list[Any]:
        interval = "-" if np.isnan(row.low) else f"{row.low:+.2f} .. {row.high:+.2f}"
        return [
            printable(row.name),
            number(row.a),
            number(row.b),
            number(row.difference, "+.2f"),
            interval,
            number(row.p, ".4f"),
            number(row.adjusted, ".4f"),
            "*" if row.adjusted < alpha else "",
        ]

    for row in rows[1:]:
        table.add_row(cells(row))
    table.add_divider()
    table.add_row(cells(rows[0]))
    return table.get_string()
