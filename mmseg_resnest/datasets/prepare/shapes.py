# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Polygons and run lengths: from shapes to pixels by pycocotools, and back by OpenCV.

A pixel at column x, row y is the square from (x, y) to (x + 1, y + 1), as in COCO. A polygon that
follows the pixels' borders, at integer coordinates, gives exactly those pixels.

pycocotools trusts what it is given: run lengths that do not fit the image, and coordinates far
outside of it, are refused here first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

_FARTHEST = 1e6  # pixels from the image's corner
_LONGEST = 1e8  # pixels along an outline, which takes memory for each


def fill_polygon(points: npt.ArrayLike, height: int, width: int) -> Mask:
    """The pixels (height, width) of a polygon, by COCO's rule; parts outside are cut off.

    ``points`` are corners (n, 2) or (2 n,), each x and y; the last is joined to the first.

    Raises:
        ValueError: A coordinate is not a number within a million pixels, there are fewer than
            three corners, the outline is longer than a hundred million pixels, or it lies outside
            of the image or in fractions of it.
    """
    from pycocotools import mask

    corners = check_polygon(points, (height, width))
    runs = mask.frPyObjects([corners.reshape(-1).tolist()], height, width)
    return decode_rle(mask.merge(runs)["counts"], height, width)


def check_polygon(
    points: npt.ArrayLike, size: tuple[int, int] | None = None
) -> npt.NDArray[np.float64]:
    """The corners (n, 2) of a polygon; ValueError as :func:`fill_polygon`.

    ``size`` is height and width of the image, if they are known.
    """
    corners = _coordinates(points).reshape(-1, 2)
    if len(corners) < 3:
        raise ValueError("a polygon needs three points")
    if np.abs(np.diff(corners, axis=0, append=corners[:1])).sum() > _LONGEST:
        raise ValueError("its outline is too long; simplify it")
    if np.abs(corners).max() <= 1 and (corners % 1).any():
        raise ValueError("its coordinates are fractions of the image; multiply them by its size")
    if size is not None and ((corners < 0).all(0) | (corners > size[::-1]).all(0)).any():
        raise ValueError(f"it lies outside of its image, which has {size[1]}x{size[0]} pixels")
    return corners


def _coordinates(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    numbers = np.asarray(values)
    if numbers.dtype.kind not in "iuf" or not (np.abs(numbers) <= _FARTHEST).all():
        raise ValueError(f"a coordinate is not a number within {_FARTHEST:.0e}")
    return numbers.astype(np.float64)


def fill_circle(centre: npt.ArrayLike, edge: npt.ArrayLike, height: int, width: int) -> Mask:
    """The pixels whose centres lie in a circle, given its centre and a point on it, each (x, y).

    Raises:
        ValueError: As :func:`fill_polygon`.
    """
    centre, edge = _coordinates(centre), _coordinates(edge)
    if len(centre) != 2 or len(edge) != 2:
        raise ValueError("a point is not a pair of x and y")
    y, x = np.ogrid[0.5:height, 0.5:width]
    radius = (edge[0] - centre[0]) ** 2 + (edge[1] - centre[1]) ** 2
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius


def decode_rle(counts: str | bytes | Sequence[int], height: int, width: int) -> Mask:
    """The pixels (height, width) of COCO's run lengths; ValueError as :func:`run_lengths`."""
    runs = run_lengths(counts, height, width)
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def run_lengths(
    counts: str | bytes | Sequence[int], height: int, width: int
) -> npt.NDArray[np.int64]:
    """COCO's run lengths, down the columns, the first run outside.

    ``counts`` are the runs, or their text in the COCO API's form.

    Raises:
        ValueError: They do not fill the image exactly.
    """
    if isinstance(counts, str | bytes):
        counts = _numbers(counts.encode("ascii") if isinstance(counts, str) else counts)
    runs = np.asarray(counts)
    # Each by itself first: the sum of a few huge ones wraps round to any number.
    if runs.ndim != 1 or not runs.size or runs.dtype.kind not in "iu":
        raise ValueError("the run lengths are not a list of whole numbers")
    if runs.min() < 0 or runs.max() > height * width:
        raise ValueError(f"the run lengths are not all in 0..{height * width}")
    runs = runs.astype(np.int64)
    if runs.sum() != height * width:
        raise ValueError(f"the run lengths add up to {runs.sum()}, not to {height} x {width}")
    return runs


def _numbers(text: bytes) -> list[int]:
    """The numbers of a text as the COCO API's ``rleToString`` writes them.

    Five bits a character, lowest first; from the fourth number on the difference from the number
    two before.
    """
    numbers: list[int] = []
    value = shift = 0
    for byte in text:
        group = byte - 48
        if not 0 <= group < 64:
            raise ValueError(f"the character {chr(byte)!r} does not occur in run lengths")
        value |= (group & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a run length has too many digits")
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the text of the run lengths ends early")
    return numbers


def encode_rle(mask: Mask) -> list[int]:
    """COCO's uncompressed run lengths of (height, width): the opposite of :func:`decode_rle`."""
    return _numbers(compress_rle(mask).encode("ascii"))


def compress_rle(mask: Mask) -> str:
    """The text of a mask's run lengths in the COCO API's form."""
    from pycocotools import mask as coco

    return str(coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"], "ascii")


def outlines(labels: npt.NDArray[np.uint8]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Polygons that, painted one after the other, give a label map (H, W) back exactly.

    Each connected area of a label gives its outer border, without holes; an area in
    another's hole comes after it and so is painted over it.

    Yields:
        Label and corners (x, y), along the pixels' borders, from the largest to the smallest.
    """
    found = []
    for value in np.unique(labels):
        number, areas = cv2.connectedComponents((labels == value).astype(np.uint8), connectivity=4)
        for area in range(1, number):
            # At twice the size the border runs between a pixel's first and second sample.
            double = np.repeat(np.repeat(areas == area, 2, axis=0), 2, axis=1).astype(np.uint8)
            contours, _ = cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            corners = (contours[0][:, 0] + 1) // 2
            corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
            found.append((cv2.contourArea(corners), int(value), corners))
    for _, label, corners in sorted(found, key=lambda entry: -entry[0]):
        yield label, [(int(x), int(y)) for x, y in corners]
