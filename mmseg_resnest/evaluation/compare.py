# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Whether two runs differ: a paired bootstrap over the images of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..io.text import printable
from .image_counts import ImageCounts, class_mean, image_draws
from .results import SCORES, new_table, number, other_scores, score
from .results_file import read_results_file

__all__ = ["Comparison", "compare_counts", "comparison_table", "other_scores_of", "scores_table"]


@dataclass(frozen=True)
class Comparison:
    """Run B against run A on one score, in percent; NaN where a run has none."""

    name: str
    """A class, or ``mIoU``."""
    a: float
    b: float
    low: float
    """Ends of the 95% interval of the difference B - A."""
    high: float
    p: float
    """Two-sided p-value of "no difference"."""
    adjusted: float
    """``p`` of a class after Holm's correction for the number of classes."""

    @property
    def difference(self) -> float:
        """B - A."""
        return self.b - self.a


def compare_counts(
    a: ImageCounts, b: ImageCounts, draws: int = 2000, seed: int = 0
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
        raise UserError("dataset", first, "has other labels in the other run; use the same data")
    differences = []
    for weights in image_draws(len(a.images), draws, seed):
        one, two = a.iou(weights), b.iou(weights)
        differences.append(np.column_stack([class_mean(two) - class_mean(one), two - one]))
    drawn = np.concatenate(differences)
    total_a, total_b = a.iou(), b.iou()
    scores_a = np.concatenate([[class_mean(total_a)], total_a])
    scores_b = np.concatenate([[class_mean(total_b)], total_b])
    p = np.array([_p_value(column) for column in drawn.T])
    adjusted = np.concatenate([p[:1], _holm(p[1:])])
    results = []
    for k, name in enumerate(["mIoU", *a.classes]):
        column = drawn[:, k][~np.isnan(drawn[:, k])]
        low, high = np.quantile(column, [0.025, 0.975]) if len(column) else (np.nan, np.nan)
        of_a, of_b, lower, upper = (
            100 * float(value) for value in (scores_a[k], scores_b[k], low, high)
        )
        results.append(Comparison(name, of_a, of_b, lower, upper, float(p[k]), float(adjusted[k])))
    return results


def _same_images(a: ImageCounts, b: ImageCounts) -> list[int]:
    """Where each image of A is in B."""
    if a.classes != b.classes:
        counts = f"{len(a.classes)} and {len(b.classes)} classes"
        raise UserError("classes", "the runs", f"have different classes ({counts})")
    # Folders may have moved: the file's name decides, as long as it names one image.
    names = [[os.path.basename(i) for i in run.images] for run in (a, b)]
    if len(set(names[0])) != len(names[0]) or len(set(names[1])) != len(names[1]):
        names = [a.images, b.images]
    place = {name: i for i, name in enumerate(names[1])}
    missing = [name for name in names[0] if name not in place]
    if missing or len(names[0]) != len(names[1]):
        only = f", {missing[0]} only in the first" if missing else ""
        raise UserError(
            "dataset",
            "the runs",
            f"have different images ({len(a.images)} and {len(b.images)}{only}); evaluate both on "
            "the same split",
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


def comparison_table(rows: Sequence[Comparison]) -> str:
    """What :func:`compare_counts` returned, as text; ``*`` marks an adjusted p below 0.05."""
    table = new_table("class", "A", "B", "B - A", "95% interval", "p", "p adj", "")

    for row in (*rows[1:], rows[0]):
        if row is rows[0]:
            table.add_divider()
        interval = "-" if np.isnan(row.low) else f"{row.low:+.2f} .. {row.high:+.2f}"
        scores = number(row.a), number(row.b), number(row.difference, "+.2f")
        chances = number(row.p, ".4f"), number(row.adjusted, ".4f")
        star = "*" if row.adjusted < 0.05 else ""
        table.add_row([printable(row.name), *scores, interval, *chances, star])
    return table.get_string()


def other_scores_of(path: str | os.PathLike[str], counted: bool) -> dict[str, float]:
    """The scores that an evaluation wrote beside its counts of images, or in place of them.

    Args:
        path: The folder of an evaluation, the work folder of a run that was tested, or a file
            in one.
        counted: Whether there are counts, which :data:`.results.SCORES` are compared by.

    Raises:
        UserError: ``results.json`` cannot be read.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    for file in (folder / "results.json", folder / "test" / "results.json"):
        if file.is_file():
            result = read_results_file(file)
            if result.get("task") == "test":
                first = {} if counted else {name: result.get(name) for name in SCORES}
                named = {**first, **other_scores(result)}
                return {name: value for name, value in named.items() if value is not None}
    return {}


def scores_table(a: Mapping[str, float], b: Mapping[str, float]) -> str:
    """The scores that both runs have, and the difference, as text."""
    table = new_table("score", "A", "B", "B - A")
    for name in a:
        if name in b:
            difference = f"{b[name] - a[name]:+.4g}"
            table.add_row([printable(name), score(a[name]), score(b[name]), difference])
    return table.get_string()
