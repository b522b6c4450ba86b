# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""From head scores to label maps at the image's size, without score maps of that size.

The stack resizes the head's scores to the network's input, removes the padding, resizes the rest to
the image and takes the arg max: two maps of classes x height x width. Here the steps are one
(:mod:`.resampling`), and its result is reduced to labels piece by piece.

A cell is a rectangle of pixels that are made from the same few places of the scores. A resized
score is a weighted mean of these places' scores, so a class can win in a cell only if its largest
place reaches the largest over all classes of their smallest places. A trained network leaves one or
two candidates in most cells; where there is one, nothing is interpolated. Where there are many, and
on a GPU, the whole map is computed block by block.

One resize on a CPU gives ``interpolate``'s own scores, bit by bit, and so the labels of
:func:`plain_label_map`: both take fused multiply-adds along the width, then along the height, from
the last place to the first. (Torch sums otherwise where height + width of the result are at most
256, and for channels-last scores.) Two resizes are one sum here, while the stack rounds
the map between them: labels then differ only where the best two classes differ by less than
rounding. Of equal scores the lowest class wins, as with ``argmax``.
Scores are expected to be finite: NaN or infinity give a class, but an undefined one.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .resampling import Axis, Resampling, Resize, Step, blocks, pieces

__all__ = ["argmax_classes", "label_map", "plain_label_map", "summed_label_map"]

# Sides of a cell are at most so many pixels: the scores of a few cells fit the cache.
_LONGEST = 16
# Cells pay from so many pixels on.
_LEAST_PIXELS = 4
# A score of a candidate takes so many times as long as one of a whole block.
_COST = 4
# Bytes of the scores, and pixels, of the cells whose candidates are looked for at a time.
_BAND_BYTES, _BAND_PIXELS = 2**21, 3 * 2**16
# Scores of candidates that are computed at a time, below which torch starts no threads, and cells.
_SCORES, _LEAST_CELLS = 2**15, 64


def plain_label_map(scores: Tensor, steps: Sequence[Step] = ()) -> Tensor:
    """The reference, (N, C, h, w) to (N, H, W): every step on the whole map, then the arg max."""
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
    operator = Resampling(scores.shape[2:], steps, _at_least_float32(scores), scores.device)
    cells = _Cells(operator) if scores.device.type == "cpu" and height and width else None
    labels = scores.new_empty((len(scores), height, width), dtype=torch.int64)
    for image, out in zip(scores, labels, strict=True):
        image = image.to(operator.dtype).contiguous()
        if cells is None or not cells.pay(image):
            _label_blocks([operator], [image], out)
        else:
            cells.label(image, out)
    return labels


@torch.no_grad()
def argmax_classes(scores: Tensor) -> Tensor:
    """Arg max (H, W) int64 over the classes of scores (C, H, W); of equal scores the lowest."""
    if scores.device.type != "cpu" or not scores.is_floating_point():
        return scores.argmax(0)
    classes, height, width = scores.shape
    labels = torch.empty(height, width, dtype=torch.int64)
    for first, last in pieces(height, classes * width * scores.element_size(), scores.device):
        labels[first:last] = _best(scores[:, first:last].clone(), 0)
    return labels


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
    size = operators[0].rows.size, operators[0].columns.size
    labels = images[0].new_empty(size, dtype=torch.int64)
    _label_blocks(operators, images, labels, softmax)
    return labels


def _label_blocks(
    operators: Sequence[Resampling], images: Sequence[Tensor], out: Tensor, softmax: bool = False
) -> None:
    """Writes the labels of the sum of views (C, h, w) to ``out`` (H, W)."""
    images = [image.flip(1, 2) for image in images]
    for rows, columns in blocks(*out.shape):
        views = [
            operator.tiles(image, rows, columns)
            for operator, image in zip(operators, images, strict=True)
        ]
        # All views have as many classes, so their tiles are cut alike.
        for tiles in zip(*views, strict=True):
            part = tiles[0][0]
            scores = [tile.softmax(1) if softmax else tile for _, tile in tiles]
            total = scores[0]
            for other in scores[1:]:
                total += other
            out[part, columns] = _best(total, 1)


def _effective(steps: Sequence[Step], height: int, width: int) -> tuple[list[Step], int, int]:
    """The steps that change something, and the size that they lead to."""
    kept = []
    for step in steps:
        if not step.keeps(height, width):
            kept.append(step)
        height, width = step.resulting(height, width)
    return kept, height, width


def _at_least_float32(scores: Tensor) -> torch.dtype:
    return torch.promote_types(scores.dtype, torch.float32)


def _best(scores: Tensor, axis: int, rank: Tensor | None = None) -> Tensor:
    """Arg max over the classes, which lie along ``axis``; among equal scores the lowest.

    Args:
        scores: Scores; on a CPU they are overwritten.
        axis: That of the classes.
        rank: The class of each score as ``number - class`` with any larger ``number``, which is
            returned minus the class; None: the classes are 0, 1, ... and the class is returned.
    """
    words = {torch.float32: torch.int32, torch.float64: torch.int64}.get(scores.dtype)
    if scores.device.type != "cpu" or words is None:
        return scores.argmax(axis)
    # torch's argmax over a dimension that is not the last is scalar code; this is vector code. The
    # distance to the maximum is 0, whose bits are the integer 0, or negative, as is the integer of
    # its bits; so the largest sum of that integer and a rank is the rank of the lowest class.
    classes = scores.shape[axis]
    ranks = _ranks(classes, words, axis, scores.dim()) if rank is None else rank.to(words)
    bits = scores.sub_(scores.amax(axis, keepdim=True)).view(words).add_(ranks).amax(axis)
    # NaN has bits of any kind.
    return (classes - bits).clamp_(0, classes - 1) if rank is None else bits


@functools.lru_cache(maxsize=16)
def _ranks(classes: int, dtype: torch.dtype, axis: int, dimensions: int) -> Tensor:
    """The number of classes down to 1 along ``axis``, on the CPU."""
    shape = [-1 if i == axis else 1 for i in range(dimensions)]
    return torch.arange(classes, 0, -1, dtype=dtype).view(shape)


class _Runs:
    """Pixels along one axis in runs that are made from the same places.

    Attributes:
        taps: Number of these places.
        pixels: Pixels of the longest run.
        run: (size,) the run of each pixel.
        offset: (size,) the pixel's number in its run.
        place: (runs,) the first place of a run.
        weights: (taps, pixels, runs) the weights of the places; 0 beyond the end of a run.
    """

    def __init__(self, axis: Axis) -> None:
        number = torch.arange(axis.size)
        begins = torch.ones(axis.size, dtype=torch.bool)
        begins[1:] = axis.first[1:] != axis.first[:-1]
        run = begins.cumsum(0) - 1
        lengths = run.bincount()
        # Long runs are cut into equal parts.
        parts = (lengths + _LONGEST - 1) // _LONGEST
        cut = ((lengths + parts - 1) // parts)[run]
        begins |= (number - number[begins][run]) % cut == 0
        self.run = begins.cumsum(0) - 1
        first = number[begins]
        self.offset = number - first[self.run]
        self.pixels = int(self.offset.max()) + 1
        place = axis.first[first]
        self.taps = int((axis.last - place[self.run]).max())
        self.place = place.clamp(max=axis.matrix.shape[1] - self.taps)
        places = self.place[self.run][:, None] + torch.arange(self.taps)
        self.weights = axis.matrix.new_zeros(self.taps, self.pixels, len(first))
        self.weights[:, self.offset, self.run] = axis.matrix.gather(1, places).t()


class _Candidates:
    """Classes that can win in windows of ``size`` places; ``rows`` is where they begin.

    Attributes:
        counts: (rows, columns) how many classes a window has.
        begin: (rows, columns) where they begin in ``classes``.
        classes: Those of all windows, window by window, in order.
    """

    def __init__(self, scores: Tensor, rows: slice, size: tuple[int, int]) -> None:
        low = high = scores
        for axis, begins in ((1, rows), (2, slice(0, scores.shape[2] - size[1] + 1, 1))):
            parts = [
                (slice(None),) * axis + (slice(begins.start + k, begins.stop + k, begins.step),)
                for k in range(size[axis - 1])
            ]
            low = functools.reduce(torch.minimum, [low[part] for part in parts])
            high = functools.reduce(torch.maximum, [high[part] for part in parts])
        # Sums may be off by their rounding. With NaN all classes stay.
        margin = 16 * torch.finfo(scores.dtype).eps * torch.maximum(high.amax(), -low.amin())
        out = high < low.amax(0) - margin
        place = out.logical_not_().flatten().nonzero()[:, 0]
        windows = out[0].numel()
        window, order = (place % windows).sort(stable=True)
        counts = window.bincount(minlength=windows)
        self.classes = place.div(windows, rounding_mode="floor")[order]
        self.counts = counts.view(out.shape[1:])
        self.begin = (counts.cumsum(0) - counts).view(out.shape[1:])


class _Cells:
    """The labels of one size of scores, by the cells of their grid."""

    def __init__(self, operator: Resampling) -> None:
        self.down, self.across = _Runs(operator.rows), _Runs(operator.columns)
        self._taps = (self.down.taps, self.across.taps)
        cells = len(self.down.place) * len(self.across.place)
        self._large = operator.rows.size * operator.columns.size >= _LEAST_PIXELS * cells

    def pay(self, scores: Tensor) -> bool:
        """Whether few candidates are left in every eighth row of windows of (C, h, w)."""
        if not self._large:
            return False
        rows = slice(0, scores.shape[1] - self.down.taps + 1, 8)
        counts = _Candidates(scores, rows, self._taps).counts
        return bool(_COST * counts[counts > 1].sum() <= len(scores) * counts.numel())

    def label(self, scores: Tensor, out: Tensor) -> None:
        """Writes the labels of scores (C, h, w) to ``out`` (H, W)."""
        row_bytes = scores.element_size() * len(scores) * scores.shape[2]
        row_pixels = -(-out.numel() // scores.shape[1])
        step = max(min(_BAND_BYTES // row_bytes, _BAND_PIXELS // row_pixels), 1)
        for first in range(0, scores.shape[1] - self.down.taps + 1, step):
            last = min(first + step, scores.shape[1] - self.down.taps + 1)
            inside = (self.down.place >= first) & (self.down.place < last)
            pixels = inside[self.down.run].nonzero()[:, 0]
            if not len(pixels):
                continue
            runs = inside.nonzero()[:, 0]
            candidates = _Candidates(scores, slice(first, last), self._taps)
            labels = self._label(scores, candidates, first, runs)
            side = self.across.pixels
            size = self.down.pixels * side
            row = (self.down.run[pixels] - runs[0]) * (len(self.across.place) * size)
            row += self.down.offset[pixels] * side
            column = self.across.run * size + self.across.offset
            chosen = labels.flatten().index_select(0, (row[:, None] + column).flatten())
            out[pixels[0] : pixels[-1] + 1] = chosen.view(len(pixels), -1)

    def _label(self, scores: Tensor, found: _Candidates, top: int, runs: Tensor) -> Tensor:
        """Labels (cells, pixels of a cell), int32, of the cells in some runs of rows."""
        window = self.down.place[runs][:, None] - top, self.across.place
        counts, begin = found.counts[window].flatten(), found.begin[window].flatten()
        size = self.down.pixels * self.across.pixels
        labels = found.classes[begin].to(torch.int32)[:, None].expand(-1, size).contiguous()
        for cells, numbers in _groups(counts, size):
            classes = found.classes[begin[cells] + numbers]
            column = cells % len(self.across.place)
            row = runs[cells.div(len(self.across.place), rounding_mode="floor")]
            rank = (len(scores) - classes)[:, None, None]
            best = _best(self._interpolated(scores, row, column, classes), 0, rank)
            best = (len(scores) - best).clamp_(0, len(scores) - 1)
            labels.index_copy_(0, cells, best.to(torch.int32).flatten(0, 1).t())
        return labels

    def _interpolated(self, scores: Tensor, row: Tensor, column: Tensor, classes: Tensor) -> Tensor:
        """Scores (k, height, width, n) of classes (k, n) in the cells of runs (n,) and (n,)."""
        height, width = scores.shape[1:]
        down, across = (torch.arange(taps)[:, None] for taps in self._taps)
        places = (
            ((self.down.place[row] + down) * width)[:, None] + self.across.place[column] + across
        )
        index = classes * (height * width) + places[:, :, None]  # (taps, taps, k, n)
        near = scores.flatten().index_select(0, index.flatten()).view(index.shape)
        weights = self.across.weights.index_select(2, column)
        wide = _weighted_sum(near.transpose(0, 1).unsqueeze(-2), weights)  # (taps, k, width, n)
        weights = self.down.weights.index_select(2, row)
        return _weighted_sum(wide[:, :, None], weights[:, :, None])


def _weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    total = values[-1] * weights[-1]  # the last place first, as `interpolate` does
    for place in range(len(values) - 2, -1, -1):
        total.addcmul_(values[place], weights[place])
    return total


def _groups(counts: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cells (n,) of about as many candidates, two or more, and these' numbers (k, n).

    Where a cell has fewer than k its last one repeats.
    """
    counts, order = counts.sort()
    listed = counts.tolist()
    first = bisect.bisect_right(listed, 1)
    while first < len(listed):
        last = bisect.bisect_right(listed, listed[first] + listed[first] // 4)
        last = min(last, first + max(_SCORES // (listed[first] * size), _LEAST_CELLS))
        number = torch.arange(listed[last - 1])[:, None]
        yield order[first:last], torch.minimum(number, counts[first:last] - 1)
        first = last
