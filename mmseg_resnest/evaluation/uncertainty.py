# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How unsure a model is of each pixel, from the probabilities that it gives."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError

__all__ = [
    "UNCERTAINTIES", "check_uncertainty", "heat_image", "uncertainty_image", "uncertainty_of",
]  # fmt: skip

UNCERTAINTIES = ("entropy", "margin")
_LEAST = np.finfo(np.float32).tiny


def check_uncertainty(kind: str) -> None:
    """Raise UserError if ``kind`` is not in ``UNCERTAINTIES``."""
    if kind not in UNCERTAINTIES:
        said = f"must be {' or '.join(UNCERTAINTIES)}, not {kind!r}"
        raise UserError("argument", "uncertainty", said)


def uncertainty_of(
    scores: NDArray[np.floating], kind: str = "entropy", overlap: bool = False
) -> NDArray[np.float32]:
    """The uncertainty of each pixel, 0 (sure) to 1, without a unit.

    ``entropy`` is the entropy of the class over the largest one that it can have:
    -sum(p log p) / log(C), which is 1 where all C classes are equally likely. ``margin`` is
    1 - (p1 - p2), p1 and p2 being the two highest probabilities.

    With classes that may overlap each class is there or not, with p and 1 - p: ``entropy`` is the
    mean of -(p log p + (1 - p) log(1 - p)) / log(2) over the classes, which is the entropy of all
    classes together over the largest one, and ``margin`` 1 - abs(2 p - 1) of the class for which
    that is the largest.

    Args:
        scores: (C, ...) probabilities; over all classes they sum to 1 unless these may overlap.
        kind: ``entropy`` or ``margin``.
        overlap: Whether classes may overlap.

    Returns:
        float32 of the shape of ``scores`` without its first axis.

    Raises:
        UserError: There is no such kind.
    """
    check_uncertainty(kind)
    chances = np.asarray(scores, np.float32)
    if kind == "margin":
        if overlap:
            values = 1 - np.abs(2 * chances - 1).min(0)
        elif len(chances) == 1:
            values = np.zeros(chances.shape[1:], np.float32)
        else:
            top = np.partition(chances, len(chances) - 2, axis=0)
            values = 1 - (top[-1] - top[-2])
    elif overlap:
        values = (_information(chances) + _information(1 - chances)).mean(0) / np.log(2)
    else:
        values = _information(chances).sum(0) / np.log(max(len(chances), 2))
    return np.clip(values, 0, 1).astype(np.float32)


def _information(chances: NDArray[np.float32]) -> NDArray[np.float32]:
    """-p log p, 0 where p is 0."""
    return -chances * np.log(np.maximum(chances, _LEAST))


def uncertainty_image(values: NDArray[np.float32]) -> Image.Image:
    """Uncertainties (H, W) as a grey picture of 8 bits: value / 255 is the uncertainty."""
    return Image.fromarray(np.rint(255 * values).astype(np.uint8))


def heat_image(grey: Image.Image) -> Image.Image:
    """What :func:`uncertainty_image` made in colours: black is sure, then red, yellow and white."""
    image = grey.copy()
    ramp = 3 * np.arange(256)[:, None] - [0, 255, 510]
    image.putpalette(np.clip(ramp, 0, 255).astype(np.uint8).tobytes())
    return image
