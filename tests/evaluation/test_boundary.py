# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Boundary IoU against the definition, pixel by pixel."""

import math

import numpy as np
import pytest

from mmseg_resnest.evaluation.boundary import boundary_counts, boundary_distance, inner_boundary


def slow_band(mask, distance):
    """Pixels of the mask with something else, or the outside, within a chessboard distance."""
    height, width = mask.shape
    band = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            if not mask[y, x]:
                continue
            for v in range(y - distance, y + distance + 1):
                for u in range(x - distance, x + distance + 1):
                    inside = 0 <= v < height and 0 <= u < width
                    if not inside or not mask[v, u]:
                        band[y, x] = 1
    return band


def test_distance():
    assert boundary_distance(1024, 2048) == round(0.02 * math.hypot(1024, 2048)) == 46
    assert boundary_distance(3, 4) == 1
    assert boundary_distance(30, 40, 0.1) == 5


@pytest.mark.parametrize("distance", [1, 2, 4])
def test_band_is_that_of_the_definition(distance):
    random = np.random.default_rng(distance)
    mask = (random.random((23, 17)) < 0.9).astype(np.uint8)
    mask[4:20, 3:15] = 1
    np.testing.assert_array_equal(inner_boundary(mask, distance), slow_band(mask, distance))


def test_counts_of_classes():
    random = np.random.default_rng(3)
    label = np.kron(random.integers(0, 4, (4, 5)), np.ones((6, 6), int))
    pred = np.roll(label, 1, axis=1)
    label[0:5, 0:5] = 255
    got = boundary_counts(pred, label, 5, 255, ratio=0.05)
    distance = round(0.05 * math.hypot(*label.shape))
    for k in range(5):
        truth = slow_band((label == k).astype(np.uint8), distance)
        guess = slow_band(((pred == k) & (label != 255)).astype(np.uint8), distance)
        assert got[0, k] == (truth & guess).sum()
        assert got[1, k] == (truth | guess).sum()
    assert got[1, 4] == 0
