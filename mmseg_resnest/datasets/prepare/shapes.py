# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Polygons and run lengths: from shapes to pixels and back.

A pixel at column x, row y is the square from (x, y) to (x + 1, y + 1), as in COCO: its centre is
(x + 0.5, y + 0.5). **A pixel belongs to a polygon when its centre lies inside, by the even-odd
rule**; a centre exactly on an edge counts as inside on the polygon's left and upper side and
as outside on the right and lower side, so polygons that share an edge share no pixel. A polygon
that follows the pixels' borders, at integer coordinates, therefore gives exactly those pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]

_FARTHEST = 1e9  # pixels from the image's corner: beyond, sums of squares would lose pixels
_CROSSINGS_AT_ONCE = 1 << 20  # bounds the memory that a polygon of many corners takes
# Bounds the time. The outline of any set of pixels crosses rows at most once a pixel and row's end.
_CROSSINGS = 1 << 24
_CROSSINGS_A_PIXEL = 4


def fill_polygon(points: npt.ArrayLike, height: int, width: int) -> Mask:
    """The pixels of a polygon.

    Each edge is crossed by the horizontal lines through the pixels' centres; along such a line
    every crossing changes from outside to inside or back.

    Args:
        points: Corners (n, 2), each (x, y); the last is joined to the first. Parts outside of the
            image are cut off.
        height: Of the image.
        width: Of the image.

    Returns:
        (height, width).

    Raises:
        ValueError: A coordinate is not a number, or is beyond a billion pixels; or the outline
            crosses the rows far more often than that of any set of pixels.
    """
    corners = _coordinates(points).reshape(-1, 2)
    start, end = corners, np.roll(corners, -1, axis=0)
    flips = np.zeros((height, width + 1), dtype=np.bool_)
    # Rows whose centre y + 0.5 lies in [lower, upper): the half-open interval counts a corner once.
    lower = np.minimum(start[:, 1], end[:, 1])
    upper = np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(lower - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(upper - 0.5), 0, height).astype(np.int64)
    lengths = last - first
    ends = np.cumsum(lengths)
    if len(ends) and ends[-1] > max(_CROSSINGS, _CROSSINGS_A_PIXEL * flips.size):
        raise ValueError(f"its outline crosses the image's rows {ends[-1]:,} times; simplify it")
    done = 0
    while done < len(corners):
        bound = (ends[done - 1] if done else 0) + _CROSSINGS_AT_ONCE
        upto = max(done + 1, int(np.searchsorted(ends, bound, side="right")))
        some = lengths[done:upto]
        edge = np.repeat(np.arange(done, upto), some)
        row = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some) + first[edge]
        dy = end[edge, 1] - start[edge, 1]
        share = (row + 0.5 - start[edge, 1]) / dy
        x = start[edge, 0] + share * (end[edge, 0] - start[edge, 0])
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        np.logical_xor.at(flips, (row, column), True)
        done = upto
    return np.logical_xor.accumulate(flips, axis=1)[:, :width]


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
    inside: Mask = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius
    return inside


def decode_rle(counts: str | bytes | Sequence[int], height: int, width: int) -> Mask:
    """The pixels of COCO's run lengths.

    Runs go down the columns, the first is outside. As text (COCO API, ``rleToString``) each number
    is written in groups of five bits, lowest first, as characters from ``0`` on, the sixth bit
    telling that another follows and the last group's fifth bit the sign; from the fourth number
    on it is the difference from the number two before.

    Args:
        counts: The runs, or their text.
        height: Of the image.
        width: Of the image.

    Returns:
        (height, width).

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
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _numbers(text: bytes) -> list[int]:
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
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    ends = np.concatenate([[0], changes, [mask.size]])
    return [int(run) for run in np.diff(ends)]


def compress_rle(counts: Sequence[int]) -> str:
    """The text of run lengths, see :func:`decode_rle`."""
    text = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group = value & 31
            value >>= 5
            more = value != (-1 if group & 16 else 0)
            text.append(chr(48 + (group | 32 if more else group)))
    return "".join(text)


def outlines(
    labels: npt.NDArray[np.uint8],
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Polygons that, painted one after the other, give a label map back exactly.

    Each connected area of a label gives its outer border, without holes; an area that lies in
    another's hole comes after it and so is painted over it.

    Args:
        labels: (H, W).

    Yields:
        Label and corners (x, y), along the pixels' borders, from the largest to the smallest.
    """
    found = []
    for value in np.unique(labels):
        areas, _ = ndimage.label(labels == value)
        for number, where in enumerate(ndimage.find_objects(areas), start=1):
            corners = _outer_border(areas[where] == number)
            shift_x, shift_y = where[1].start, where[0].start
            size = _enclosed(corners)
            found.append((size, int(value), [(x + shift_x, y + shift_y) for x, y in corners]))
    for _, value, corners in sorted(found, key=lambda entry: -entry[0]):
        yield value, corners


def _enclosed(corners: list[tuple[int, int]]) -> int:
    """Twice the area inside of a polygon."""
    return abs(
        sum(
            x * v - u * y for (x, y), (u, v) in zip(corners, corners[1:] + corners[:1], strict=True)
        )
    )


def _outer_border(mask: Mask) -> list[tuple[int, int]]:
    """Corners of the outer border of a connected area, the area on the right of the path."""
    padded = np.pad(mask, 1)
    # Where the path may go from a corner (x, y): right above a pixel, down at its right side, ...
    right = padded[1:, 1:] & ~padded[:-1, 1:]
    down = padded[1:, :-1] & ~padded[1:, 1:]
    left = padded[:-1, :-1] & ~padded[1:, :-1]
    up = padded[:-1, 1:] & ~padded[:-1, :-1]
    open_to = np.stack([right, down, left, up])
    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))
    start_x = int(np.argmax(mask[0]))  # the area's first row has its topmost pixel
    x, y, heading = start_x, 0, 0
    corners = []
    while True:
        # Where two pixels touch at a corner, turn right: the path stays with the pixel it is at.
        for turn in (1, 0, 3):
            way = (heading + turn) % 4
            if open_to[way, y, x]:
                break
        if way != heading or (x, y) == (start_x, 0):
            corners.append((x, y))
        heading = way
        x, y = x + steps[way][0], y + steps[way][1]
        if (x, y) == (start_x, 0):
            return corners
