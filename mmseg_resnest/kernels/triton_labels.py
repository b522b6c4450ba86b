# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Labels from head scores in one pass, as kernels in Triton: what :mod:`.predict` does on a GPU.

All steps along an axis are one matrix with few numbers other than 0 in a line. A program makes the
scores of some pixels of a row, class by class, from the few scores around each, and keeps the best;
neither resized scores nor a dense product exist. For the sum of several views' probabilities a
first kernel leaves the logarithm of each pixel's softmax sum, a number for each pixel and view.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .predict import Axis, Step

__all__ = ["MOST_TAPS", "view_labels"]

MOST_TAPS = 8
"""Scores along an axis that a pixel may be made from; two enlargements need four."""
# Pixels of a row that a program makes.
_PIXELS = 256


@triton.jit
def _score(
    plane_ptr, width_of_scores, row, x, inside, height, width,
    row_first_ptr, row_weights_ptr, column_first_ptr, column_weights_ptr,
    ROW_TAPS: tl.constexpr, COLUMN_TAPS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One class's scores of pixels x (p) of a row."""
    score = tl.zeros(x.shape, DTYPE)
    left = tl.load(column_first_ptr + x, mask=inside, other=0)
    top = tl.load(row_first_ptr + row)
    for j in tl.static_range(COLUMN_TAPS):
        column = tl.zeros(x.shape, DTYPE)
        for i in tl.static_range(ROW_TAPS):
            place = plane_ptr + (top + i) * width_of_scores + left + j
            value = tl.load(place, mask=inside, other=0.0).to(DTYPE)
            column += value * tl.load(row_weights_ptr + i * height + row)
        score += column * tl.load(column_weights_ptr + j * width + x, mask=inside, other=0.0)
    return score


@triton.jit
def _log_sums(
    scores_ptr, sizes_ptr, row_first_ptr, row_weights_ptr, column_first_ptr, column_weights_ptr,
    out_ptr, classes, height, width,
    ROW_TAPS: tl.constexpr, COLUMN_TAPS: tl.constexpr, PIXELS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The logarithm of the sum over the classes of exp(score), for each view and pixel."""
    x = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row = tl.program_id(1)
    view = tl.program_id(2)
    inside = x < width
    start = tl.load(sizes_ptr + 3 * view)
    plane = tl.load(sizes_ptr + 3 * view + 1)
    line = tl.load(sizes_ptr + 3 * view + 2)
    best = tl.full((PIXELS,), float("-inf"), DTYPE)
    total = tl.zeros((PIXELS,), DTYPE)
    for c in range(classes):
        score = _score(
            scores_ptr + start + c * plane, line, row, x, inside, height, width,
            row_first_ptr + view * height, row_weights_ptr + view * ROW_TAPS * height,
            column_first_ptr + view * width, column_weights_ptr + view * COLUMN_TAPS * width,
            ROW_TAPS, COLUMN_TAPS, DTYPE,
        )  # fmt: skip
        higher = tl.maximum(best, score)
        total = total * tl.exp(best - higher) + tl.exp(score - higher)
        best = higher
    place = (row + view * height).to(tl.int64) * width + x
    tl.store(out_ptr + place, best + tl.log(total), mask=inside)


@triton.jit
def _labels(
    scores_ptr, sizes_ptr, row_first_ptr, row_weights_ptr, column_first_ptr, column_weights_ptr,
    log_sums_ptr, out_ptr, views, classes, height, width, image_stride,
    SOFTMAX: tl.constexpr, ROW_TAPS: tl.constexpr, COLUMN_TAPS: tl.constexpr, PIXELS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    x = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row = tl.program_id(1)
    image = tl.program_id(2)
    inside = x < width
    scores_ptr += image.to(tl.int64) * image_stride
    best = tl.full((PIXELS,), float("-inf"), DTYPE)
    label = tl.zeros((PIXELS,), tl.int32)
    for c in range(classes):
        total = tl.zeros((PIXELS,), DTYPE)
        for view in range(views):
            start = tl.load(sizes_ptr + 3 * view)
            plane = tl.load(sizes_ptr + 3 * view + 1)
            line = tl.load(sizes_ptr + 3 * view + 2)
            score = _score(
                scores_ptr + start + c * plane, line, row, x, inside, height, width,
                row_first_ptr + view * height, row_weights_ptr + view * ROW_TAPS * height,
                column_first_ptr + view * width, column_weights_ptr + view * COLUMN_TAPS * width,
                ROW_TAPS, COLUMN_TAPS, DTYPE,
            )  # fmt: skip
            if SOFTMAX:
                place = (row + view * height).to(tl.int64) * width + x
                score = tl.exp(score - tl.load(log_sums_ptr + place, mask=inside, other=0.0))
            total += score
        # The lowest class stays at a tie.
        higher = total > best
        best = tl.where(higher, total, best)
        label = tl.where(higher, c, label)
    place = (row + image * height).to(tl.int64) * width + x
    tl.store(out_ptr + place, label.to(tl.int64), mask=inside)


class _Tables(NamedTuple):
    """What the kernels read beside scores, for all views (V) of one size (H, W)."""

    sizes: Tensor  # (V, 3) int64: where a view's scores begin, lengths of a class and of a row
    row_first: Tensor  # (V, H) int32: the first score that a row is made from
    row_weights: Tensor  # (V, taps, H): weights of that one and of those behind it
    column_first: Tensor  # (V, W)
    column_weights: Tensor  # (V, taps, W)


# An evaluation meets a size again and again, and making these takes longer than the kernels.
@functools.lru_cache(maxsize=64)
def _tables(
    classes: int,
    views: tuple[tuple[int, int, tuple[Step, ...]], ...],
    dtype: torch.dtype,
    device: torch.device,
) -> _Tables | None:
    """The tables of views (h, w, steps), or None where a pixel is made from too many scores."""
    rows = _taps([Axis(h, steps, 0, dtype).matrix for h, _, steps in views])
    columns = _taps([Axis(w, steps, 1, dtype).matrix for _, w, steps in views])
    if rows is None or columns is None:
        return None
    sizes, start = [], 0
    for h, w, _ in views:
        sizes.append((start, h * w, w))
        start += classes * h * w
    tensors = (torch.tensor(sizes), *rows, *columns)
    # From memory that is not pinned the copy is staged at once, and nothing is waited for.
    return _Tables(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def _taps(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """The matrices (size, length) by the first number other than 0 in a line and those behind it.

    Returns:
        (V, size) int32 and (V, taps, size); None where a line is longer than the most, or longer
        than some view's scores.
    """
    firsts, lasts = [], []
    for matrix in matrices:
        used = (matrix != 0).to(torch.uint8)
        firsts.append(used.argmax(1))
        lasts.append(matrix.shape[1] - used.flip(1).argmax(1))
    taps = max(int((last - first).max()) for first, last in zip(firsts, lasts, strict=True))
    if taps > min(MOST_TAPS, *(matrix.shape[1] for matrix in matrices)):
        return None
    weights = []
    for view, matrix in enumerate(matrices):
        firsts[view] = firsts[view].clamp(max=matrix.shape[1] - taps)
        places = firsts[view][:, None] + torch.arange(taps)
        weights.append(matrix.gather(1, places).t())
    return torch.stack(firsts).to(torch.int32), torch.stack(weights)


def view_labels(
    views: Sequence[tuple[Tensor, Sequence[Step]]], softmax: bool = False
) -> Tensor | None:
    """Arg max of the sum of views, for each of several images.

    Args:
        views: Scores (N, C, h, w) of one dtype on one CUDA device, and the steps that lead to the
            images' size, the same for all. Several views need N = 1.
        softmax: Whether each view's scores become probabilities, at the images' size, before they
            are added.

    Returns:
        (N, H, W) int64, among equal sums the lowest class; None where the steps make a pixel from
        more than :data:`MOST_TAPS` scores along an axis.
    """
    first = views[0][0]
    count, classes = first.shape[:2]
    dtype = torch.promote_types(first.dtype, torch.float32)
    sizes = tuple((*scores.shape[2:], tuple(steps)) for scores, steps in views)
    tables = _tables(classes, sizes, dtype, first.device)
    if tables is None:
        return None
    scores = first.contiguous()
    if len(views) > 1:
        scores = torch.cat([view.flatten() for view, _ in views])
    height, width = tables.row_first.shape[1], tables.column_first.shape[1]
    kind = tl.float64 if dtype == torch.float64 else tl.float32
    constants = {
        "ROW_TAPS": tables.row_weights.shape[1],
        "COLUMN_TAPS": tables.column_weights.shape[1],
        "PIXELS": _PIXELS,
        "DTYPE": kind,
        "enable_fp_fusion": True,
    }
    across = triton.cdiv(width, _PIXELS)
    labels = torch.empty((count, height, width), dtype=torch.int64, device=first.device)
    log_sums = scores.new_empty((len(views), height, width) if softmax else 1, dtype=dtype)
    with torch.cuda.device_of(first):
        if softmax:
            _log_sums[across, height, len(views)](
                scores, *tables, log_sums, classes, height, width, **constants
            )
        _labels[across, height, count](
            scores, *tables, log_sums, labels, len(views), classes, height, width,
            scores[0].numel(), SOFTMAX=softmax, **constants,
        )  # fmt: skip
    return labels
