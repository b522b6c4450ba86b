# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Resize, crop and mirror of score maps, as one matrix for the rows and one for the columns.

Each step is linear and works along rows and columns separately, so that all of them together are
two matrices, with at most four numbers other than 0 in a line for two enlargements. They are
applied block by block: no score map of the image's size is needed.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Axis", "Crop", "Mirror", "Resampling", "Resize", "Step", "add_resized", "blocks"]

# Pixels of a block, (height, width).
_BLOCK = (64, 128)
# Bytes of the scores that are computed at a time: they stay in a core's cache. On a GPU larger
# pieces cost less.
_TILE_BYTES = {"cpu": 2**20, "cuda": 2**26}


@dataclass(frozen=True)
class Resize:
    """Bilinear resize to ``size`` (height, width), as ``torch.nn.functional.interpolate`` does."""

    size: tuple[int, int]
    align_corners: bool

    def __call__(self, scores: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C, *size)."""
        return F.interpolate(scores, self.size, mode="bilinear", align_corners=self.align_corners)

    def along(self, axis: int, lines: Tensor) -> Tensor:
        """The step along one axis (0: height): lines (n, length) to (n, size[axis])."""
        return F.interpolate(
            lines[None], self.size[axis], mode="linear", align_corners=self.align_corners
        )[0]

    def keeps(self, height: int, width: int) -> bool:
        """Whether scores of this size stay as they are."""
        return self.size == (height, width)

    def resulting(self, height: int, width: int) -> tuple[int, int]:
        """The size after the step."""
        return self.size


@dataclass(frozen=True)
class Crop:
    """Removes pixels at the edges."""

    left: int
    right: int
    top: int
    bottom: int

    def __call__(self, scores: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C, h - top - bottom, w - left - right), a view."""
        height, width = scores.shape[2:]
        return scores[:, :, self.top : height - self.bottom, self.left : width - self.right]

    def along(self, axis: int, lines: Tensor) -> Tensor:
        """The step along one axis (0: height) of lines (n, length)."""
        first, last = ((self.top, self.bottom), (self.left, self.right))[axis]
        return lines[:, first : lines.shape[1] - last]

    def keeps(self, height: int, width: int) -> bool:
        """Whether scores of this size stay as they are."""
        return not (self.left or self.right or self.top or self.bottom)

    def resulting(self, height: int, width: int) -> tuple[int, int]:
        """The size after the step."""
        return height - self.top - self.bottom, width - self.left - self.right


@dataclass(frozen=True)
class Mirror:
    """Mirrors along an axis: 0 swaps top and bottom, 1 left and right."""

    axis: int

    def __call__(self, scores: Tensor) -> Tensor:
        """(N, C, h, w), a copy."""
        return scores.flip(2 + self.axis)

    def along(self, axis: int, lines: Tensor) -> Tensor:
        """The step along one axis (0: height) of lines (n, length)."""
        return lines.flip(1) if axis == self.axis else lines

    def keeps(self, height: int, width: int) -> bool:
        """Whether scores of this size stay as they are."""
        return False

    def resulting(self, height: int, width: int) -> tuple[int, int]:
        """The size after the step."""
        return height, width


Step = Resize | Crop | Mirror


class Axis:
    """All steps along one axis of ``length`` places (0: height).

    Attributes:
        matrix: (size, length); a line holds the weights of the scores that a pixel is made from.
        size: Pixels of the result.
        first: (size,) the first place with a weight.
        last: (size,) the place after the last one with a weight.
    """

    def __init__(self, length: int, steps: Sequence[Step], axis: int, dtype: torch.dtype) -> None:
        # What the steps make of unit vectors: the very weights that they use.
        lines = torch.eye(length, dtype=dtype)
        for step in steps:
            lines = step.along(axis, lines)
        self.matrix = lines.t().contiguous()
        self.size = len(self.matrix)
        used = (self.matrix != 0).to(torch.uint8)
        self.first = used.argmax(1)
        self.last = length - used.flip(1).argmax(1)
        self._first, self._last = self.first.tolist(), self.last.tolist()

    def source(self, pixels: slice) -> slice:
        """Places of the scores that these pixels are made from."""
        return slice(min(self._first[pixels]), max(self._last[pixels]))

    def made_from(self, length: int) -> int:
        """How many of the first pixels are made from the first ``length`` places alone.

        Only for steps without a :class:`Mirror`, which keep the order.
        """
        return bisect.bisect_right(self._last, length)


class Resampling:
    """Steps from scores of ``size`` (height, width): a matrix for the rows, one for the columns.

    ``dtype`` is float32 or float64, that of the scores; ``rows`` and ``columns`` are the axes.
    """

    def __init__(
        self,
        size: Sequence[int],
        steps: Sequence[Step],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.dtype = dtype
        self.rows = Axis(size[0], steps, 0, dtype)
        self.columns = Axis(size[1], steps, 1, dtype)
        # Flipped: a product adds up its places in order, `interpolate` begins with the last one.
        # A copy from pageable memory is staged at once: nothing waits for the GPU.
        self._down = self.rows.matrix.flip(1).to(device, non_blocking=True)
        self._across = self.columns.matrix.t().flip(0).contiguous().to(device, non_blocking=True)

    def tiles(
        self, flipped: Tensor, rows: slice, columns: slice, top: int = 0
    ) -> Iterator[tuple[slice, Tensor]]:
        """The resulting scores of a block, some rows at a time.

        Args:
            flipped: (C, k, w) rows of the scores, flipped along height and width.
            rows: Rows of the result; they are made from the rows given.
            columns: Columns of the result.
            top: Which row of the scores is the first one given.

        Yields:
            Rows of the result, and their scores (r, C, columns).
        """
        bottom, length = top + flipped.shape[1], flipped.shape[2]
        source, across = self.rows.source(rows), self.columns.source(columns)
        places = flipped[:, _flipped(source, bottom), _flipped(across, length)]
        classes, count, _ = places.shape
        width = columns.stop - columns.start
        lines = places.transpose(0, 1).reshape(count * classes, -1)
        wide = _product(lines, self._across[_flipped(across, length), columns])
        wide = wide.view(count, classes * width)
        row_bytes = classes * width * wide.element_size()
        for first, last in pieces(rows.stop - rows.start, row_bytes, wide.device):
            part = slice(rows.start + first, rows.start + last)
            near = self.rows.source(part)
            weights = self._down[part, _flipped(near, self._down.shape[1])]
            tile = _product(weights, wide[_flipped(near, source.stop)])
            yield part, tile.view(last - first, classes, width)

    def add(
        self,
        total: Tensor,
        scores: Tensor,
        top: int = 0,
        rows: slice | None = None,
        exponential: bool = False,
    ) -> None:
        """Adds the resulting scores to ``total`` in place.

        Args:
            total: (C, H, W).
            scores: (C, k, w) rows of the scores.
            top: Which row the first of them is.
            rows: Rows of the result that are added; they are made from the rows given.
            exponential: Whether the exponential of the resulting scores is added.
        """
        rows = rows or slice(0, self.rows.size)
        flipped = scores.flip(1, 2)
        for down, across in blocks(rows.stop - rows.start, self.columns.size):
            down = slice(down.start + rows.start, down.stop + rows.start)
            for part, tile in self.tiles(flipped, down, across, top):
                total[:, part, across] += (tile.exp_() if exponential else tile).transpose(0, 1)


@torch.no_grad()
def add_resized(
    total: Tensor, scores: Tensor, steps: Sequence[Step], exponential: bool = False
) -> None:
    """Adds one view's scores to ``total``, in place, without a second map of its size.

    Args:
        total: (C, H, W), float32 or float64.
        scores: (C, h, w).
        steps: What is done to the scores, in order; they lead to (H, W).
        exponential: Whether the exponential of the resulting scores is added.
    """
    operator = Resampling(scores.shape[1:], steps, total.dtype, total.device)
    operator.add(total, scores.to(total.dtype), exponential=exponential)


def blocks(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks of a map."""
    for top in range(0, height, _BLOCK[0]):
        for left in range(0, width, _BLOCK[1]):
            yield (
                slice(top, min(top + _BLOCK[0], height)),
                slice(left, min(left + _BLOCK[1], width)),
            )


def pieces(rows: int, row_bytes: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """First and last (not included) row of pieces that fit the cache."""
    step = max(_TILE_BYTES["cpu" if device.type == "cpu" else "cuda"] // max(row_bytes, 1), 1)
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def _flipped(places: slice, length: int) -> slice:
    return slice(length - places.stop, length - places.start)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in full precision, also where torch may round float32 for speed."""
    if left.dtype == torch.float64 or torch.get_float32_matmul_precision() == "highest":
        return left @ right
    total = left[:, :1] * right[:1]
    for k in range(1, left.shape[1]):
        total.addcmul_(left[:, k : k + 1], right[k : k + 1])
    return total
