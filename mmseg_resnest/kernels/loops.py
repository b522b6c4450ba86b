# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Loops that Numba compiles: labels from head scores, confusion matrix, PNG rows, colour jitter.

:mod:`mmseg_resnest.kernels.compiled` compiles them and is what others import; this file needs
Numba. They are written so that LLVM makes vector code of the innermost ones: contiguous along the
columns or the classes, no branch, no slice (each slice of an array costs atomic operations), and
scratch arrays that stay in the first cache. A multiplication and an addition may become one
operation ("contract"); nothing is assumed about NaN or infinity, and sums keep their order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types

# Pixels of a block. A higher one shares more of the rows that its pixels lie between; a lower one
# leaves more classes out.
BLOCK_ROWS, BLOCK_COLUMNS = 64, 64
# Pixels whose colours are changed at a time.
COLOURS = 2048

OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}

_floats_2d, _floats_3d = types.float32[:, ::1], types.float32[:, :, ::1]
# Unsigned, because an index that may be negative is tested at every use.
_places = types.uint64[:, ::1]
_ints, _ints_2d = types.int64[::1], types.int64[:, ::1]


@njit(**OPTIONS)
def _lower(lowest: Any, turned: Any, row: int, column: int) -> None:
    """The minimum of ``lowest`` and the scores of a place, class by class."""
    for c in range(lowest.size):
        score = turned[row, column, c]
        lowest[c] = score if score < lowest[c] else lowest[c]


@njit(**OPTIONS)
def _raise(lead: Any, turned: Any, row: int, column: int, strong: int) -> None:
    """The maximum of ``lead`` and how far each class is above one of them at a place."""
    rival = turned[row, column, strong]
    for c in range(lead.size):
        above = turned[row, column, c] - rival
        lead[c] = above if above > lead[c] else lead[c]


@njit(**OPTIONS)
def _widen(
    wide: Any, to: int, scores: Any, c: int, row: int, place: Any, weight: Any, width: int
) -> None:
    """A row of a class's scores at the columns of a block."""
    taps = place.shape[0]
    if taps == 1:
        for x in range(width):
            wide[to, x] = weight[0, x] * scores[c, row, place[0, x]]
    else:
        for x in range(width):
            wide[to, x] = (
                weight[0, x] * scores[c, row, place[0, x]]
                + weight[1, x] * scores[c, row, place[1, x]]
            )
    for k in range(2, taps):
        for x in range(width):
            wide[to, x] += weight[k, x] * scores[c, row, place[k, x]]


@njit(**OPTIONS)
def _compare_1(
    best: Any, chosen: Any, y: int, c: int, wide: Any, a: int, weight_a: float, width: int
) -> None:
    """Puts class ``c`` where it is above the best so far, for pixels made from one row."""
    for x in range(width):
        score = weight_a * wide[a, x]
        better = score > best[y, x]
        best[y, x] = score if better else best[y, x]
        chosen[y, x] = c if better else chosen[y, x]


@njit(**OPTIONS)
def _compare_2(
    best: Any,
    chosen: Any,
    y: int,
    c: int,
    wide: Any,
    a: int,
    b: int,
    weight_a: float,
    weight_b: float,
    width: int,
) -> None:
    """As :func:`_compare_1`, for pixels made from two rows."""
    for x in range(width):
        score = weight_a * wide[a, x] + weight_b * wide[b, x]
        better = score > best[y, x]
        best[y, x] = score if better else best[y, x]
        chosen[y, x] = c if better else chosen[y, x]


@njit(**OPTIONS)
def _compare_3(
    best: Any,
    chosen: Any,
    y: int,
    c: int,
    wide: Any,
    a: int,
    b: int,
    d: int,
    weight_a: float,
    weight_b: float,
    weight_d: float,
    width: int,
) -> None:
    """As :func:`_compare_1`, for pixels made from three rows."""
    for x in range(width):
        score = weight_a * wide[a, x] + weight_b * wide[b, x] + weight_d * wide[d, x]
        better = score > best[y, x]
        best[y, x] = score if better else best[y, x]
        chosen[y, x] = c if better else chosen[y, x]


@njit(**OPTIONS)
def _add_row(wide: Any, to: int, row: int, weight: float, width: int) -> None:
    for x in range(width):
        wide[to, x] += weight * wide[row, x]


@njit(**OPTIONS)
def _fill(labels: Any, top: int, bottom: int, left: int, right: int, c: int) -> None:
    for y in range(top, bottom):
        for x in range(left, right):
            labels[y, x] = c


@njit(**OPTIONS)
def _write(labels: Any, chosen: Any, top: int, bottom: int, left: int, width: int) -> None:
    for y in range(top, bottom):
        for x in range(width):
            labels[y, left + x] = chosen[y - top, x]


@njit(**OPTIONS)
def _possible_classes(
    turned: Any,
    top: int,
    bottom: int,
    left: int,
    right: int,
    lowest: Any,
    lead: Any,
    possible: Any,
) -> int:
    """Writes the classes that can be the best in a block to ``possible``, in order.

    The class with the highest minimum over the block's places leaves out those that lie below it
    at every place.

    Returns:
        How many there are: at least one, whatever the scores.
    """
    lowest[:] = np.inf
    for row in range(top, bottom):
        for column in range(left, right):
            _lower(lowest, turned, row, column)
    strong = 0
    for c in range(1, lowest.size):
        if lowest[c] > lowest[strong]:
            strong = c
    lead[:] = -np.inf
    for row in range(top, bottom):
        for column in range(left, right):
            _raise(lead, turned, row, column, strong)
    lead[strong] = 0
    count = 0
    for c in range(lead.size):
        if lead[c] >= 0:
            possible[count] = c
            count += 1
    return count


def label_bands(
    scores: Any,
    turned: Any,
    down: Any,
    down_weight: Any,
    down_count: Any,
    across: Any,
    across_weight: Any,
    labels: Any,
    first: int,
    last: int,
) -> None:
    """Labels of bands of ``BLOCK_ROWS`` rows.

    Args:
        scores: (C, h, w) float32.
        turned: (h, w, C), the same.
        down: (K, H) rows of the scores that a row of pixels is made from.
        down_weight: (K, H) float32, their weights.
        down_count: (H,) how many of them there are; beyond, the weights are 0.
        across: (L, W) columns, the same way.
        across_weight: (L, W) float32.
        labels: (H, W) int64, written.
        first: Band to begin with.
        last: Band to end before.
    """
    classes, length, breadth = scores.shape
    height, width = labels.shape
    lowest = np.empty(classes, np.float32)
    lead = np.empty(classes, np.float32)
    possible = np.empty(classes, np.int32)
    best = np.empty((BLOCK_ROWS, BLOCK_COLUMNS), np.float32)
    chosen = np.empty((BLOCK_ROWS, BLOCK_COLUMNS), np.int32)
    place = np.empty((across.shape[0], BLOCK_COLUMNS), np.uint64)
    weight = np.empty((across.shape[0], BLOCK_COLUMNS), np.float32)
    needed = np.empty(length, np.bool_)
    # Rows of one class at the block's columns, and last a sum of several of them.
    wide = np.empty((length + 1, BLOCK_COLUMNS), np.float32)
    for band in range(first, last):
        top = band * BLOCK_ROWS
        bottom = min(top + BLOCK_ROWS, height)
        needed[:] = False
        above, below = length, 0
        for y in range(top, bottom):
            for k in range(down_count[y]):
                row = np.int64(down[k, y])
                needed[row] = True
                above = min(above, row)
                below = max(below, row + 1)
        for left in range(0, width, BLOCK_COLUMNS):
            right = min(left + BLOCK_COLUMNS, width)
            count = right - left
            start, stop = breadth, 0
            for k in range(across.shape[0]):
                for x in range(count):
                    column = np.int64(across[k, left + x])
                    start = min(start, column)
                    stop = max(stop, column + 1)
                    place[k, x] = across[k, left + x]
                    weight[k, x] = across_weight[k, left + x]
            number = _possible_classes(turned, above, below, start, stop, lowest, lead, possible)
            if number == 1:
                _fill(labels, top, bottom, left, right, possible[0])
                continue
            best[:] = -np.inf
            chosen[:] = 0
            for i in range(number):
                c = possible[i]
                for row in range(above, below):
                    if needed[row]:
                        _widen(wide, row - above, scores, c, row, place, weight, count)
                for y in range(top, bottom):
                    taps = down_count[y]
                    a = np.int64(down[0, y]) - above
                    weight_a = down_weight[0, y]
                    if taps == 1:
                        _compare_1(best, chosen, y - top, c, wide, a, weight_a, count)
                        continue
                    b = np.int64(down[1, y]) - above
                    weight_b = down_weight[1, y]
                    if taps == 2:
                        _compare_2(best, chosen, y - top, c, wide, a, b, weight_a, weight_b, count)
                        continue
                    d = np.int64(down[2, y]) - above
                    weight_d = down_weight[2, y]
                    if taps == 3:
                        _compare_3(
                            best,
                            chosen,
                            y - top,
                            c,
                            wide,
                            a,
                            b,
                            d,
                            weight_a,
                            weight_b,
                            weight_d,
                            count,
                        )
                        continue
                    for x in range(count):
                        wide[length, x] = 0
                    for k in range(taps):
                        row = np.int64(down[k, y]) - above
                        _add_row(wide, length, row, down_weight[k, y], count)
                    _compare_1(best, chosen, y - top, c, wide, length, np.float32(1), count)
            _write(labels, chosen, top, bottom, left, count)


def count_pairs(pred: Any, label: Any, classes: int, ignore_index: int, counts: Any) -> int:
    """Adds to ``counts`` how often each class was predicted for each label.

    Args:
        pred: (n,) int64 predicted classes.
        label: (n,) int64 true classes.
        classes: Number of classes C.
        ignore_index: The label left out.
        counts: (C * C,) int64, added to at ``label * C + pred``.

    Returns:
        How many pixels were left out because a class is none of 0..C-1. A prediction is looked at
        where the label is ``ignore_index``, too.
    """
    wrong = 0
    for i in range(pred.size):
        p, true = pred[i], label[i]
        if p < 0 or p >= classes:
            wrong += 1
        elif true == ignore_index:
            continue
        elif true < 0 or true >= classes:
            wrong += 1
        else:
            counts[true * classes + p] += 1
    return wrong


@njit(**OPTIONS)
def _paeth(left: Any, up: Any, corner: Any) -> Any:
    """Of three neighbours the one nearest to left + up - corner (PNG specification, 9.4)."""
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    near = left if to_left <= to_up else up
    distance = to_left if to_left <= to_up else to_up
    return near if distance <= to_corner else corner


@njit(**OPTIONS)
def _grey_row(kind: int, filtered: Any, above: Any, row: Any) -> None:
    """A row of a file of one byte a pixel from its filtered bytes and the row above."""
    left = corner = np.int32(0)
    if kind == 0:
        for x in range(row.size):
            row[x] = filtered[x]
    elif kind == 1:
        for x in range(row.size):
            left = (left + filtered[x]) & 255
            row[x] = left
    elif kind == 2:
        for x in range(row.size):
            row[x] = filtered[x] + above[x]
    elif kind == 3:
        for x in range(row.size):
            left = (filtered[x] + ((left + np.int32(above[x])) >> 1)) & 255
            row[x] = left
    else:
        for x in range(row.size):
            up = np.int32(above[x])
            if filtered[x] == 0 and left == corner:  # within a region, nearly always
                left = up
            else:
                left = (filtered[x] + _paeth(left, up, corner)) & 255
            corner = up
            row[x] = left


@njit(**OPTIONS)
def _colour_row(kind: int, filtered: Any, above: Any, row: Any) -> None:
    """As :func:`_grey_row`, of red, green and blue; the row has them the other way round."""
    red = green = blue = np.int32(0)
    if kind == 0:
        for x in range(row.size // 3):
            row[3 * x], row[3 * x + 1] = filtered[3 * x + 2], filtered[3 * x + 1]
            row[3 * x + 2] = filtered[3 * x]
    elif kind == 1:
        for x in range(row.size // 3):
            red = (red + filtered[3 * x]) & 255
            green = (green + filtered[3 * x + 1]) & 255
            blue = (blue + filtered[3 * x + 2]) & 255
            row[3 * x], row[3 * x + 1], row[3 * x + 2] = blue, green, red
    elif kind == 2:
        for x in range(row.size // 3):
            row[3 * x] = filtered[3 * x + 2] + above[3 * x]
            row[3 * x + 1] = filtered[3 * x + 1] + above[3 * x + 1]
            row[3 * x + 2] = filtered[3 * x] + above[3 * x + 2]
    elif kind == 3:
        for x in range(row.size // 3):
            blue = (filtered[3 * x + 2] + ((blue + np.int32(above[3 * x])) >> 1)) & 255
            green = (filtered[3 * x + 1] + ((green + np.int32(above[3 * x + 1])) >> 1)) & 255
            red = (filtered[3 * x] + ((red + np.int32(above[3 * x + 2])) >> 1)) & 255
            row[3 * x], row[3 * x + 1], row[3 * x + 2] = blue, green, red
    else:
        blue_corner = green_corner = red_corner = np.int32(0)
        for x in range(row.size // 3):
            blue_up, green_up = np.int32(above[3 * x]), np.int32(above[3 * x + 1])
            red_up = np.int32(above[3 * x + 2])
            blue = (filtered[3 * x + 2] + _paeth(blue, blue_up, blue_corner)) & 255
            green = (filtered[3 * x + 1] + _paeth(green, green_up, green_corner)) & 255
            red = (filtered[3 * x] + _paeth(red, red_up, red_corner)) & 255
            blue_corner, green_corner, red_corner = blue_up, green_up, red_up
            row[3 * x], row[3 * x + 1], row[3 * x + 2] = blue, green, red


def unfilter(filtered: Any, rows: Any, channels: int) -> bool:
    """Takes back the filters of a PNG file (W3C PNG specification, section 9).

    Args:
        filtered: (H * (1 + W * channels),) uint8: of each row its filter's number, and its bytes.
        rows: (H, W * channels) uint8, written; three channels from RGB to BGR.
        channels: 1 or 3.

    Returns:
        False if a row's filter is none.
    """
    height, width = rows.shape
    above = np.zeros(width, np.uint8)
    for y in range(height):
        start = y * (width + 1)
        kind = filtered[start]
        if kind > 4:
            return False
        if channels == 1:
            _grey_row(kind, filtered[start + 1 : start + 1 + width], above, rows[y])
        else:
            _colour_row(kind, filtered[start + 1 : start + 1 + width], above, rows[y])
        above = rows[y]
    return True


@njit(**OPTIONS)
def _saturate(
    hue: Any,
    saturation: Any,
    value: Any,
    turn: Any,
    factor: Any,
    sector: Any,
    within: Any,
    strength: Any,
    light: Any,
) -> None:
    for i in range(hue.size):
        turned = np.int32(hue[i]) + turn
        turned = turned - np.int32(180) if turned >= 180 else turned
        sixth = np.float32(turned) * np.float32(6.0 / 180.0)
        number = np.int32(sixth)
        sector[i] = number
        within[i] = sixth - np.float32(number)
        strong = np.float32(saturation[i]) * factor
        strong = strong if strong < np.float32(255) else np.float32(255)
        strength[i] = np.float32(np.int32(strong)) * np.float32(1 / 255.0)
        light[i] = np.float32(value[i]) * np.float32(1 / 255.0)


@njit(**OPTIONS)
def _byte(value: Any, contrast: Any) -> Any:
    """A colour from 0 to 1 as OpenCV makes it a byte, then times the contrast."""
    most = np.float32(255)
    more = np.float32(np.int32(value * most)) * contrast
    return np.uint8(np.int32(more if more < most else most))


@njit(**OPTIONS)
def _mix(
    sector: Any,
    within: Any,
    strength: Any,
    light: Any,
    contrast: Any,
    blue: Any,
    green: Any,
    red: Any,
) -> None:
    one = np.float32(1)
    for i in range(blue.size):
        k, h, s, v = sector[i], within[i], strength[i], light[i]
        low = v * (one - s)
        falling = v * (one - s * h)
        rising = v * (one - s * (one - h))
        r = v if (k == 0) | (k == 5) else (falling if k == 1 else (rising if k == 4 else low))
        g = v if (k == 1) | (k == 2) else (rising if k == 0 else (falling if k == 3 else low))
        b = v if (k == 3) | (k == 4) else (rising if k == 2 else (falling if k == 5 else low))
        blue[i] = _byte(b, contrast)
        green[i] = _byte(g, contrast)
        red[i] = _byte(r, contrast)


def change_colours(planes: Any, turn: int, factor: float, contrast: float) -> None:
    """From HSV, changed, to BGR, as OpenCV does the conversion, and times a contrast.

    Args:
        planes: (3, n) uint8: hue from 0 to 179, saturation, value; written: blue, green, red.
        turn: Added to the hue, from 0 to 179.
        factor: The saturation is multiplied by it.
        contrast: What comes out is multiplied by it.
    """
    sector = np.empty(COLOURS, np.int32)
    within = np.empty(COLOURS, np.float32)
    strength = np.empty(COLOURS, np.float32)
    light = np.empty(COLOURS, np.float32)
    for start in range(0, planes.shape[1], COLOURS):
        stop = min(start + COLOURS, planes.shape[1])
        a, b, c = planes[0, start:stop], planes[1, start:stop], planes[2, start:stop]
        _saturate(a, b, c, turn, factor, sector, within, strength, light)
        _mix(sector, within, strength, light, contrast, a, b, c)


LABEL_BANDS = types.void(
    _floats_3d,
    _floats_3d,
    _places,
    _floats_2d,
    _ints,
    _places,
    _floats_2d,
    _ints_2d,
    types.int64,
    types.int64,
)
UNFILTER = types.boolean(
    types.Array(types.uint8, 1, "C", readonly=True), types.uint8[:, ::1], types.int64
)
CHANGE_COLOURS = types.void(types.uint8[:, ::1], types.int32, types.float32, types.float32)
COUNT_PAIRS = types.int64(_ints, _ints, types.int64, types.int64, _ints)


def band_count(height: int) -> int:
    """Bands that rows of pixels are made in."""
    return math.ceil(height / BLOCK_ROWS)
