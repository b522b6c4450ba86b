# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How far two models may differ and still count as the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["LABELS_EQUAL", "SCORES_WITHIN", "Agreement"]

LABELS_EQUAL = 0.9999
SCORES_WITHIN = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How far two models agree."""

    images: int
    pixels: int  # of all of them
    labels: float  # share of pixels with the same label
    scores: float | None  # largest difference of a probability; None where a model gives none

    @classmethod
    def of_list(cls, found: object) -> Agreement | None:
        """What :meth:`as_list` gave; None where it is damaged."""
        kinds: list[Any] = [int, int, float | int, float | int | None]
        if not isinstance(found, list) or len(found) != len(kinds):
            return None
        good = all(isinstance(value, kind) for value, kind in zip(found, kinds, strict=True))
        return cls(*found) if good else None

    def as_list(self) -> list[float | None]:
        """As plain data, to be kept."""
        return [self.images, self.pixels, self.labels, self.scores]

    @property
    def good(self) -> bool:
        """Whether 99.99% of the labels are equal, and probabilities to 1e-3."""
        within = self.scores is None or self.scores <= SCORES_WITHIN
        return self.labels >= LABELS_EQUAL and within

    def __str__(self) -> str:
        scores = "" if self.scores is None else f", probabilities within {self.scores:.1e}"
        images = f"{self.images} image{'s' if self.images != 1 else ''}"
        return (
            f"{100 * self.labels:.4f}% of the labels equal{scores} ({images}, "
            f"{self.pixels:,} pixels)"
        )
