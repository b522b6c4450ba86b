# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Boundary IoU: how well a prediction follows the outlines of the classes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["boundary_counts", "boundary_distance", "inner_boundary"]


def boundary_distance(height: int, width: int, ratio: float = 0.02) -> int:
    """The width of the boundary band in pixels: ``ratio`` of the diagonal, at least 1.

    Source: Cheng et al., "Boundary IoU", CVPR 2021, section 4 and its published code.
    """
    return max(1, round(ratio * (height**2 + width**2) ** 0.5))


def inner_boundary(mask: NDArray[np.uint8], distance: int) -> NDArray[np.uint8]:
    """The pixels of a mask within ``distance`` of its outline.

    Masks are (H, W) of 0 and 1. The border of the image is an outline; the distance is the
    chessboard's.
    """
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    core = cv2.erode(mask, square, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    return mask - np.asarray(core, np.uint8)


def boundary_counts(
    pred: NDArray[np.integer],
    label: NDArray[np.integer],
    num_classes: int,
    ignore_index: int = 255,
    ratio: float = 0.02,
) -> NDArray[np.int64]:
    """Intersection and union of the boundary bands of each class in one image.

    The band of a class is the set of its pixels near its own outline. Ignored pixels belong to
    no class, in the label and in the prediction, so that their outline is one of both.

    Args:
        pred: (H, W) classes.
        label: (H, W) classes, ``ignore_index`` where unlabelled.
        num_classes: C.
        ignore_index: The label left out.
        ratio: Width of the band, as a fraction of the image's diagonal.

    Returns:
        (2, C) pixels: intersections, unions.
    """
    counts = np.zeros((2, num_classes), np.int64)
    distance = boundary_distance(label.shape[0], label.shape[1], ratio)
    valid = label != ignore_index
    present = set(np.unique(label[valid]).tolist()) | set(np.unique(pred[valid]).tolist())
    for k in sorted(present):
        truth = inner_boundary(((label == k) & valid).astype(np.uint8), distance)
        guess = inner_boundary(((pred == k) & valid).astype(np.uint8), distance)
        both = int(np.count_nonzero(truth & guess))
        counts[0, k] = both
        counts[1, k] = int(np.count_nonzero(truth)) + int(np.count_nonzero(guess)) - both
    return counts
