# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How likely labels are wrong, by the probabilities that a model gives them.

Every pixel is an example of a classification. The quality of an image's labels is the soft minimum
of the probabilities of its given classes: Lad and Mueller, "Estimating label quality and errors in
semantic segmentation data via any model", arXiv 2307.05080, section 3. A pixel is found wrong by
confident learning (Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset
Labels", JAIR 70, 2021, section 3.1): the model predicts another class, with at least the mean
probability that pixels labelled as that class have. Both are the methods of cleanlab's
``cleanlab.segmentation``.

Nothing here holds the scores of an image: they come in bands of rows and leave sums, and the two
probabilities of each pixel whose label is not the predicted class.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..io.atomic import atomic_open

__all__ = ["LabelEvidence", "WrongRegion", "confident_thresholds", "find_regions", "gather"]

#: Of the soft minimum, as in the paper.
TEMPERATURE = 0.1
#: Probabilities are kept as whole multiples of 1 / _UNITS.
_UNITS = 65535
_ARRAYS = ("confidence", "pixels", "doubted", "given", "predicted", "p_given", "p_predicted")


@dataclass(frozen=True)
class LabelEvidence:
    """What is kept of an image (H, W) of C classes; n is the number of doubted pixels.

    Attributes:
        size: Height and width.
        quality: Soft minimum of the probabilities of the given classes, 0..1; NaN without labels.
        confidence: (C,) sums of the probability of each class over the pixels labelled as it.
        pixels: (C,) number of those pixels.
        doubted: (H * W / 8,) packed bits: labelled pixels of which another class is predicted.
        given: (n,) their labels, row by row.
        predicted: (n,) their predicted classes.
        p_given: (n,) probabilities of the labels, in units of 1/65535.
        p_predicted: (n,) those of the predicted classes.
    """

    size: tuple[int, int]
    quality: float
    confidence: NDArray[np.float64]
    pixels: NDArray[np.int64]
    doubted: NDArray[np.uint8]
    given: NDArray[np.uint16]
    predicted: NDArray[np.uint16]
    p_given: NDArray[np.uint16]
    p_predicted: NDArray[np.uint16]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed ``.npz``."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        with atomic_open(path) as file:
            np.savez_compressed(file, size=self.size, quality=self.quality, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LabelEvidence:
        """Read what :meth:`save` wrote; UserError where the file holds something else."""
        try:
            with np.load(path, allow_pickle=False) as data:
                height, width = (int(edge) for edge in data["size"])
                arrays = [data[name] for name in _ARRAYS]
                return cls((height, width), float(data["quality"]), *arrays)
        except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
            message = f"does not hold the scores of labels ({error}); remove it and run again"
            raise UserError("format", path, message) from error

    def positions(self) -> NDArray[np.int64]:
        """(n,) where the doubted pixels are in the image, read row by row."""
        count = self.size[0] * self.size[1]
        return np.flatnonzero(np.unpackbits(self.doubted, count=count))


def gather(
    labels: NDArray[np.integer],
    bands: Iterable[tuple[int, NDArray[np.float32]]],
    num_classes: int,
    ignore_index: int = 255,
) -> LabelEvidence:
    """Read the probabilities of an image and keep what tells about its labels.

    Args:
        labels: (H, W) given classes; ``ignore_index`` and labels that are no class are left out.
        bands: The first row, and (C, n, W) probabilities of the rows from there on, from top to
            bottom, each row once.
        num_classes: Number of classes C.
        ignore_index: The label that the loss leaves out.
    """
    confidence, pixels = np.zeros(num_classes), np.zeros(num_classes, np.int64)
    weighted = weights = 0.0
    doubted = np.zeros(labels.shape, bool)
    kept: list[tuple[NDArray, ...]] = []
    for top, scores in bands:
        rows = slice(top, top + scores.shape[1])
        labelled = (labels[rows] < num_classes) & (labels[rows] != ignore_index)
        chances = scores[:, labelled]
        given = labels[rows][labelled].astype(np.int64)
        own = np.take_along_axis(chances, given[None], 0)[0].astype(np.float64)
        confidence += np.bincount(given, own, num_classes)
        pixels += np.bincount(given, minlength=num_classes)
        softmin = np.exp((1 - own) / TEMPERATURE)
        weighted, weights = weighted + float(own @ softmin), weights + float(softmin.sum())
        best = chances.argmax(0)
        other = best != given
        doubted[rows][labelled] = other
        top_chance = np.take_along_axis(chances, best[None], 0)[0]
        kept.append((given[other], best[other], own[other], top_chance[other]))
    given, best, own, top_chance = (np.concatenate(part) for part in zip(*kept, strict=True))
    return LabelEvidence(
        (labels.shape[0], labels.shape[1]),
        weighted / weights if weights else float("nan"),
        confidence,
        pixels,
        np.packbits(doubted),
        given.astype(np.uint16),
        best.astype(np.uint16),
        *(np.rint(np.clip(p, 0, 1) * _UNITS).astype(np.uint16) for p in (own, top_chance)),
    )


def confident_thresholds(
    confidence: NDArray[np.float64], pixels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(C,) the mean probability of each class over the pixels labelled as it.

    ``confidence`` and ``pixels`` are sums over all images; NaN where no pixel has the label.
    """
    unknown = np.full(len(pixels), np.nan)
    return np.divide(confidence, pixels, out=unknown, where=pixels > 0)


@dataclass(frozen=True)
class WrongRegion:
    """A connected region of pixels that were found wrong, of one given and one predicted class.

    Attributes:
        given: Class of the label.
        predicted: Class of the prediction.
        area: Pixels; they connect along their edges.
        box: x, y, width, height.
        score: Quality of its labels in (0, 1], the lowest the most likely wrong: 1 / (1 + d), where
            d = log(1 + r) * mean of log((p_predicted / t_predicted) / (p_given / t_given)), or 0 if
            that is less; t are the thresholds of the classes, and r is the radius in pixels of the
            largest disc in the region: a border that is drawn a little off is thin, a wrong object
            thick.
        p_given: Mean probability of the label.
        p_predicted: Mean probability of the predicted class.
        mask: (height, width) the region within its box.
    """

    given: int
    predicted: int
    area: int
    box: tuple[int, int, int, int]
    score: float
    p_given: float
    p_predicted: float
    mask: NDArray[np.bool_]


def find_regions(
    evidence: LabelEvidence, thresholds: NDArray[np.float64], min_area: int = 1
) -> tuple[list[WrongRegion], int]:
    """The regions of an image whose labels were found wrong, and how many pixels those are.

    Args:
        evidence: Of the image.
        thresholds: Of :func:`confident_thresholds`, of all images.
        min_area: Regions of fewer pixels are left out; their pixels count.

    Returns:
        The regions, the most likely wrong first.
    """
    chance = evidence.p_predicted / _UNITS
    with np.errstate(invalid="ignore"):  # a class that no label has is never predicted for sure
        wrong = chance >= thresholds[evidence.predicted] - 0.5 / _UNITS
    classes = len(thresholds)
    pair = evidence.given.astype(np.int64) * classes + evidence.predicted
    rows, columns = np.divmod(evidence.positions(), evidence.size[1])
    own = np.maximum(evidence.p_given, 1) / _UNITS
    regions = []
    order = np.flatnonzero(wrong)[np.argsort(pair[wrong], kind="stable")]
    for chosen in np.split(order, np.flatnonzero(np.diff(pair[order])) + 1):
        if not chosen.size:
            continue
        top, left = int(rows[chosen].min()), int(columns[chosen].min())
        places = rows[chosen] - top, columns[chosen] - left
        planes = np.zeros((3, *(int(edge.max()) + 1 for edge in places)))
        planes[0][places], planes[1][places], planes[2][places] = 1, own[chosen], chance[chosen]
        count, parts, stats, _ = cv2.connectedComponentsWithStats(
            planes[0].astype(np.uint8), connectivity=4
        )
        given, predicted = divmod(int(pair[chosen[0]]), classes)
        for index in range(1, count):
            x, y, width, height, area = map(int, stats[index])
            if area < min_area:
                continue
            box = (slice(y, y + height), slice(x, x + width))
            part = parts[box] == index
            framed = np.pad(part, 1).astype(np.uint8)
            radius = float(cv2.distanceTransform(framed, cv2.DIST_L2, 5).max())
            of_label, of_other = planes[1][box][part], planes[2][box][part]
            ratio = float(np.log(of_other / of_label).mean())
            ratio += float(np.log(thresholds[given] / thresholds[predicted]))
            doubt = float(np.log1p(radius)) * max(ratio, 0.0)
            regions.append(
                WrongRegion(
                    given, predicted, area, (left + x, top + y, width, height),
                    1 / (1 + doubt), float(of_label.mean()), float(of_other.mean()), part,
                )
            )  # fmt: skip
    return sorted(regions, key=lambda r: (r.score, r.box)), int(wrong.sum())
