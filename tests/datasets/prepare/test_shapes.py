# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmseg_resnest.datasets.prepare.shapes import (
    compress_rle,
    decode_rle,
    encode_rle,
    fill_circle,
    fill_polygon,
    outlines,
)

small_maps = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.integers(0, 3))
)


@given(labels=small_maps)
def test_outlines_give_every_pixel_back(labels: np.ndarray) -> None:
    painted = np.full_like(labels, 255)
    for value, corners in outlines(labels):
        painted[fill_polygon(corners, *labels.shape)] = value
    np.testing.assert_array_equal(painted, labels)


def test_polygon_semantics() -> None:
    square = fill_polygon([(1, 1), (3, 1), (3, 3), (1, 3)], 4, 5)
    expected = np.zeros((4, 5), bool)
    expected[1:3, 1:3] = True
    np.testing.assert_array_equal(square, expected)
    # Parts outside of the image are cut off, on every side.
    assert fill_polygon([(-9, -9), (99, -9), (99, 99), (-9, 99)], 4, 5).all()
    # Two polygons that share an edge share no pixel and leave none out.
    left = fill_polygon([(0, 0), (3.3, 0), (1.7, 4), (0, 4)], 4, 5)
    right = fill_polygon([(3.3, 0), (5, 0), (5, 4), (1.7, 4)], 4, 5)
    assert (left ^ right).all()


def test_circle() -> None:
    mask = fill_circle((2.5, 2.5), (3.5, 2.5), 5, 5)
    assert mask.sum() == 5 and mask[2, 1:4].all() and mask[1:4, 2].all()


@given(labels=small_maps)
def test_run_lengths_there_and_back(labels: np.ndarray) -> None:
    mask = labels == 1
    runs = encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(runs, *mask.shape), mask)
    np.testing.assert_array_equal(decode_rle(compress_rle(mask), *mask.shape), mask)
    np.testing.assert_array_equal(decode_rle(compress_rle(mask).encode(), *mask.shape), mask)


# Masks and their text.
PYCOCOTOOLS = [
    ("#", "01"),
    (".", "1"),
    ("#.#/.#.", "0121O"),
    ("..##/.###/####/...#", "2121O101"),
]
LARGE = "Po2Xf2`7d[Mlj0T`1TUOl_Nlj0T`1TUOXT1`l2"


@pytest.mark.parametrize(
    "points",
    [[(0, 0), (1, 1)], [(0, 0), (1e7, 0), (0, 1)], [(0, 0), (float("nan"), 0), (0, 1)],
     [(n % 64, 1e6 * (n % 2)) for n in range(2200)], [(0, 0), (0.5, 0), (0.5, 1)],
     [(65, 0), (99, 0), (99, 9)], [(0, -9), (9, -9), (9, -1)]],
    ids=["two points", "far away", "not a number", "long", "fractions", "right of it", "above"],
)  # fmt: skip
def test_bad_polygons(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match=r"point|coordinate|long|outside"):
        fill_polygon(points, 80, 64)


def test_run_lengths_of_the_coco_api() -> None:
    for mask, text in PYCOCOTOOLS:
        pixels = np.array([[c == "#" for c in row] for row in mask.split("/")])
        assert compress_rle(pixels) == text
        np.testing.assert_array_equal(decode_rle(text, *pixels.shape), pixels)
    large = np.zeros((3000, 6), bool)
    large[40:2800, 1:5] = True
    large[100:1200, 2:4] = False
    assert compress_rle(large) == LARGE
    np.testing.assert_array_equal(decode_rle(LARGE, 3000, 6), large)


@pytest.mark.parametrize("counts", [[3, 4], [10, -1, 3], "1", "\x7f0", "\x1f"])
def test_bad_run_lengths(counts: object) -> None:
    with pytest.raises(ValueError, match=r"run lengths|character"):
        decode_rle(counts, 3, 4)  # type: ignore[arg-type]
