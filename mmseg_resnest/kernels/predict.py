# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""From head scores to label maps at the image's size, without score maps of that size.

The stack resizes the scores of the head to the network's input, crops the padding away, resizes
the rest to the image and takes the arg max: two maps of classes x height x width. Each of those
steps is linear and works along rows and columns separately, so that all of them together are one
matrix for the rows and one for the columns, with at most four numbers other than 0 in a line for
two enlargements. Here these matrices are applied block by block, and a block's scores are reduced
to labels while they are in the cache.

A resized score is a weighted mean of the scores around it. A class that lies below one and the
same other class at every place that a block is made from is therefore below it in the whole block,
and is left out of it. For the predictions of a trained network few classes remain.

Labels are those of the plain way (:func:`plain_label_map`) wherever the best two classes differ by
more than the rounding of the sums, whose order is another one. Where scores are exactly equal the
lowest class is taken, as by ``argmax``; scores that are equal only before they are rounded may fall
either way. Scores are taken to be finite: what a block with NaN or infinity gets is a class, but
not a defined one.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Crop",
    "Mirror",
    "Resampling",
    "Resize",
    "Step",
    "add_resized",
    "argmax_classes",
    "label_map",
    "plain_label_map",
    "summed_label_map",
]

# Pixels of a block: few enough that most classes can be left out of it, enough that the calls cost
# nothing beside the arithmetic.
_BLOCK = (64, 128)
# Bytes of the scores of the rows that are reduced at a time: they stay in a core's cache. On a GPU
# nothing is gained by small pieces and a call costs more.
_TILE_BYTES = {"cpu": 2**19, "cuda": 2**26}


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
        """Whether it changes nothing about scores of this size."""
        return self.size == (height, width)

    def resulting(self, height: int, width: int) -> tuple[int, int]:
        """The size that scores of this size get."""
        return self.size


@dataclass(frozen=True)
class Crop:
    """Takes pixels off at the edges."""

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
        """Whether it changes nothing about scores of this size."""
        return not (self.left or self.right or self.top or self.bottom)

    def resulting(self, height: int, width: int) -> tuple[int, int]:
        """The size that scores of this size get."""
        return height - self.top - self.bottom, width - self.left - self.right


@dataclass(frozen=True)
class Mirror:
    """Mirrors along an axis: 0 turns top and bottom round, 1 left and right."""

    axis: int

    def __call__(self, scores: Tensor) -> Tensor:
        """(N, C, h, w), a copy."""
        return scores.flip(2 + self.axis)

    def along(self, axis: int, lines: Tensor) -> Tensor:
        """The step along one axis (0: height) of lines (n, length)."""
        return lines.flip(1) if axis == self.axis else lines

    def keeps(self, height: int, width: int) -> bool:
        """Whether it changes nothing about scores of this size."""
        return False

    def resulting(self, height: int, width: int) -> tuple[int, int]:
        """The size that scores of this size get."""
        return height, width


Step = Resize | Crop | Mirror


def plain_label_map(scores: Tensor, steps: Sequence[Step] = ()) -> Tensor:
    """The reference: every step on the whole map, then the arg max.

    Args:
        scores: (N, C, h, w).
        steps: What is done to the scores, in order.

    Returns:
        (N, H, W) int64.
    """
    for step in steps:
        scores = step(scores)
    return scores.argmax(1)


@torch.no_grad()
def label_map(scores: Tensor, steps: Sequence[Step] = ()) -> Tensor:
    """What :func:`plain_label_map` returns, without maps of scores at the size of the labels.

    Half precision scores are resized in float32.

    Args:
        scores: (N, C, h, w), on any device.
        steps: What is done to the scores, in order.

    Returns:
        (N, H, W) int64, the class of the highest score, on the device of the scores.
    """
    steps, height, width = _effective(steps, *scores.shape[2:])
    if not any(isinstance(step, Resize) for step in steps):
        for step in steps:
            scores = step(scores)
        return torch.stack([argmax_classes(image) for image in scores])
    labels = scores.new_empty((len(scores), height, width), dtype=torch.int64)
    dtype = _at_least_float32(scores)
    operator = Resampling(scores.shape[2:], steps, dtype, scores.device)
    for image, out in zip(scores, labels, strict=True):
        image = image.to(operator.dtype)
        for rows, columns in _blocks(height, width):
            _label_block(operator, image, rows, columns, out[rows, columns])
    return labels


@torch.no_grad()
def argmax_classes(scores: Tensor) -> Tensor:
    """Arg max over the classes of scores at their final size.

    Args:
        scores: (C, H, W).

    Returns:
        (H, W) int64; among equal scores the lowest class.
    """
    if scores.device.type != "cpu" or not scores.is_floating_point():
        return scores.argmax(0)
    classes, height, width = scores.shape
    labels = torch.empty(height, width, dtype=torch.int64)
    for first, last in _tiles(height, classes * width * scores.element_size(), scores.device):
        labels[first:last] = _best(scores[:, first:last].clone(), 0)
    return labels


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


@torch.no_grad()
def summed_label_map(
    views: Sequence[tuple[Tensor, Sequence[Step]]], softmax: bool = False
) -> Tensor:
    """Arg max of the sum of several views of one image, tile by tile.

    Args:
        views: For each view its scores (C, h, w) and the steps that lead to the image's size, the
            same for all.
        softmax: Whether each view's scores become probabilities, at the image's size, before they
            are added: MMSegmentation's test-time augmentation.

    Returns:
        (H, W) int64.
    """
    operators = [
        Resampling(scores.shape[1:], steps, _at_least_float32(scores), scores.device)
        for scores, steps in views
    ]
    images = [
        scores.to(operator.dtype) for (scores, _), operator in zip(views, operators, strict=True)
    ]
    height, width = operators[0].rows.size, operators[0].columns.size
    labels = images[0].new_empty((height, width), dtype=torch.int64)
    for rows, columns in _blocks(height, width):
        total: list[Tensor] = []
        for operator, image in zip(operators, images, strict=True):
            # Every view has as many classes, so its tiles are cut alike.
            block = image[:, operator.rows.source(rows), operator.columns.source(columns)]
            for i, (_, tile) in enumerate(operator.tiles(block.transpose(0, 1), rows, columns)):
                tile = tile.softmax(1) if softmax else tile
                if i == len(total):
                    total.append(tile)
                else:
                    total[i] += tile
        labels[rows, columns] = torch.cat([_best(tile, 1) for tile in total])
    return labels


def _effective(steps: Sequence[Step], height: int, width: int) -> tuple[list[Step], int, int]:
    """The steps that change something, and the size that they lead to."""
    kept = []
    for step in steps:
        if not step.keeps(height, width):
            kept.append(step)
        height, width = step.resulting(height, width)
    return kept, height, width


class Axis:
    """All steps along one axis as a matrix.

    Attributes:
        matrix: (size, length); a line holds the weights of the scores that a pixel is made from.
        size: Pixels of the result.
    """

    def __init__(self, length: int, steps: Sequence[Step], axis: int, dtype: torch.dtype) -> None:
        # What the steps make of the unit vectors: the very weights that they use.
        lines = torch.eye(length, dtype=dtype)
        for step in steps:
            lines = step.along(axis, lines)
        self.matrix = lines.t().contiguous()
        self.size = len(self.matrix)
        used = (self.matrix != 0).to(torch.uint8)
        self._first = used.argmax(1).tolist()
        self._last = (length - used.flip(1).argmax(1)).tolist()

    def source(self, pixels: slice) -> slice:
        """Places of the scores that these pixels are made from."""
        return slice(min(self._first[pixels]), max(self._last[pixels]))

    def made_from(self, length: int) -> int:
        """How many of the first pixels are made from the first ``length`` places alone.

        Steps without a :class:`Mirror` keep the order that this takes for granted.
        """
        return bisect.bisect_right(self._last, length)


class Resampling:
    """Steps as a matrix for the rows and one for the columns.

    Args:
        size: Height and width of the scores.
        steps: What is done to them, in order.
        dtype: float32 or float64.
        device: Where the scores are.

    Attributes:
        rows: The height's matrix and what each of its lines is made from.
        columns: The width's.
        dtype: That of the scores.
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
        # From memory that is not pinned the copy is staged at once, and nothing is waited for.
        self._down = self.rows.matrix.to(device, non_blocking=True)
        self._across = self.columns.matrix.t().contiguous().to(device, non_blocking=True)

    def tiles(self, block: Tensor, rows: slice, columns: slice) -> Iterator[tuple[slice, Tensor]]:
        """The resulting scores of a block, some rows at a time.

        Args:
            block: (k, C, l), the places of the scores that the block is made from
                (``rows.source(rows)`` and ``columns.source(columns)``), of any classes.
            rows: Rows of the result.
            columns: Columns of the result.

        Yields:
            Rows of the result, and their scores (r, C, columns).
        """
        top = self.rows.source(rows).start
        count, classes, length = block.shape
        width = columns.stop - columns.start
        weights = self._across[self.columns.source(columns), columns]
        wide = _product(block.reshape(count * classes, length), weights)
        wide = wide.view(count, classes * width)
        row_bytes = classes * width * wide.element_size()
        for first, last in _tiles(rows.stop - rows.start, row_bytes, block.device):
            part = slice(rows.start + first, rows.start + last)
            source = self.rows.source(part)
            near = wide[source.start - top : source.stop - top]
            tile = _product(self._down[part, source], near)
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
        for down, across in _blocks(rows.stop - rows.start, self.columns.size):
            down = slice(down.start + rows.start, down.stop + rows.start)
            source = self.rows.source(down)
            block = scores[:, source.start - top : source.stop - top, self.columns.source(across)]
            for part, tile in self.tiles(block.transpose(0, 1), down, across):
                total[:, part, across] += (tile.exp_() if exponential else tile).transpose(0, 1)


def _at_least_float32(scores: Tensor) -> torch.dtype:
    return torch.promote_types(scores.dtype, torch.float32)


def _label_block(
    operator: Resampling, image: Tensor, rows: slice, columns: slice, out: Tensor
) -> None:
    """Writes the labels of one block to ``out``."""
    block = image[:, operator.rows.source(rows), operator.columns.source(columns)]
    possible = None
    # On a GPU the number of classes would have to be waited for.
    if block.device.type == "cpu":
        possible = _possible_classes(block.flatten(1))
        if len(possible) == 1:
            out.fill_(int(possible))
            return
        if len(possible) < len(block):
            block = block.index_select(0, possible)
        else:
            possible = None
    for part, tile in operator.tiles(block.transpose(0, 1), rows, columns):
        best = _best(tile, 1)
        target = out[part.start - rows.start : part.stop - rows.start]
        target.copy_(best if possible is None else possible[best.to(torch.int64)])


def _possible_classes(places: Tensor) -> Tensor:
    """Classes that can be the best somewhere, in order.

    A class is left out where the one with the highest minimum is above it at every place.

    Args:
        places: (C, n) scores.
    """
    strong = int(places.amin(1).argmax())
    lead = (places - places[strong]).amax(1)
    return (~(lead < 0)).nonzero()[:, 0]  # with NaN, all


def _best(tile: Tensor, axis: int) -> Tensor:
    """Arg max over the classes, which lie along ``axis``; among equal scores the lowest.

    Args:
        tile: Scores; on a CPU they are overwritten.
        axis: That of the classes.
    """
    words = {torch.float32: torch.int32, torch.float64: torch.int64}.get(tile.dtype)
    if tile.device.type != "cpu" or words is None:
        return tile.argmax(axis)
    # torch's argmax over a dimension that is not the last one is scalar code, as are comparisons
    # with a broadcast. What follows is vector code: the distance to the maximum is 0, whose bits
    # are those of the integer 0, or negative, as is the integer of its bits; so the largest sum of
    # that integer and a rank is the rank of the lowest class at the maximum.
    classes = tile.shape[axis]
    rank = _rank(classes, words, axis, tile.dim())
    bits = tile.sub_(tile.amax(axis, keepdim=True)).view(words).add_(rank)
    # NaN has bits of any kind.
    return (classes - bits.amax(axis)).clamp_(0, classes - 1)


@functools.lru_cache(maxsize=16)
def _rank(classes: int, dtype: torch.dtype, axis: int, dimensions: int) -> Tensor:
    """The number of classes down to 1 along ``axis``, on the CPU."""
    shape = [-1 if i == axis else 1 for i in range(dimensions)]
    return torch.arange(classes, 0, -1, dtype=dtype).view(shape)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in full precision, also where torch may round float32 for speed."""
    if left.dtype == torch.float64 or torch.get_float32_matmul_precision() == "highest":
        return left @ right
    total = left[:, :1] * right[:1]
    for k in range(1, left.shape[1]):
        total.addcmul_(left[:, k : k + 1], right[k : k + 1])
    return total


def _blocks(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the blocks of a map."""
    for top in range(0, height, _BLOCK[0]):
        for left in range(0, width, _BLOCK[1]):
            yield (
                slice(top, min(top + _BLOCK[0], height)),
                slice(left, min(left + _BLOCK[1], width)),
            )


def _tiles(rows: int, row_bytes: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """First and last (not included) row of pieces that fit the cache."""
    step = max(_TILE_BYTES["cpu" if device.type == "cpu" else "cuda"] // max(row_bytes, 1), 1)
    for first in range(0, rows, step):
        yield first, min(first + step, rows)
