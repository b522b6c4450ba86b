# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Large images in overlapping tiles whose scores are blended, in bounded memory.

Each tile's scores are weighted by a ramp over what it shares with its neighbours; the weights of
all tiles sum to 1 at each pixel. Tiles are visited row by row, from left to right. A pixel is
finished when no later tile covers it, so that what is held is one tile, its share with the next
one, and one strip across the image as high as the overlap:

    4 bytes x classes x (2 tile x tile + overlap x width)

beside the rows of the image that the tiles of a row cover.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Tiling", "tiled"]


@dataclass(frozen=True)
class Tiling:
    """How an image is cut, in pixels."""

    height: int
    width: int
    tile: int  # the largest edge of a tile
    overlap: int  # the least that neighbours share

    def spans(self, length: int) -> list[tuple[int, int]]:
        """Begin and end of the tiles along an edge of the image.

        They have one size, at most ``tile``, a multiple of 8 where the image allows it, and stand
        at even distances: shrinking them costs less than an overlap that grows.
        """
        if length <= self.tile:
            return [(0, length)]
        number = -(-(length - self.overlap) // (self.tile - self.overlap))
        size = -(-(length + (number - 1) * self.overlap) // number)
        size = min(-(-size // 8) * 8, self.tile)
        starts = [round(i * (length - size) / (number - 1)) for i in range(number)]
        return [(start, start + size) for start in starts]

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.spans(self.height)) * len(self.spans(self.width))


def _weights(spans: list[tuple[int, int]]) -> list[NDArray[np.float32]]:
    """Weights of the pixels of each span; at each pixel those of all spans sum to 1."""
    total = np.zeros(spans[-1][1])
    ramps = []
    for i, (start, end) in enumerate(spans):
        ramp = np.ones(end - start)
        if i > 0:
            shared = spans[i - 1][1] - start
            ramp[:shared] = (np.arange(shared) + 0.5) / shared
        if i + 1 < len(spans):
            shared = end - spans[i + 1][0]
            ramp[-shared:] = np.minimum(ramp[-shared:], ((np.arange(shared) + 0.5) / shared)[::-1])
        ramps.append(ramp)
        total[start:end] += ramp
    return [
        (ramp / total[start:end]).astype(np.float32)
        for ramp, (start, end) in zip(ramps, spans, strict=True)
    ]


def tiled(
    read: Callable[[int, int], NDArray],
    score: Callable[[NDArray], NDArray[np.float32]],
    tiling: Tiling,
    labels: bool = True,
    advance: Callable[[], object] = lambda: None,
) -> Iterator[tuple[int, NDArray]]:
    """Score an image tile by tile.

    Args:
        read: Rows from, to (exclusive) of the image, (n, W) or (n, W, channels).
        score: (C, h, w) scores of a tile of it, to be averaged where tiles overlap.
        tiling: How the image is cut.
        labels: Yield the class of the highest score rather than the scores.
        advance: Called after each tile.

    Yields:
        The first row, and (n, W) labels, or (C, n, W) float32 scores, of the rows from there on;
        from top to bottom, each row once.
    """
    rows, columns = tiling.spans(tiling.height), tiling.spans(tiling.width)
    row_weights, column_weights = _weights(rows), _weights(columns)
    above: NDArray[np.float32] | None = None  # (C, n, W) what the rows before gave to these
    for r, (top, bottom) in enumerate(rows):
        pixels = read(top, bottom)
        done = (rows[r + 1][0] if r + 1 < len(rows) else bottom) - top  # finished after this row
        parts, below = [], []
        left: NDArray[np.float32] | None = None
        for c, (begin, end) in enumerate(columns):
            scores = score(pixels[:, begin:end]) * row_weights[r][:, None]
            scores *= column_weights[c]
            if left is not None:
                scores[:, :, : left.shape[2]] += left
            full = (columns[c + 1][0] if c + 1 < len(columns) else end) - begin
            left = scores[:, :, full:].copy()
            block = scores[:, :, :full]
            if above is not None:
                block[:, : above.shape[1]] += above[:, :, begin : begin + full]
            ready = block[:, :done]
            if labels:
                kind = np.uint8 if len(ready) <= 255 else np.uint16
                parts.append(ready.argmax(0).astype(kind))
            else:
                parts.append(ready.copy())
            below.append(block[:, done:].copy())
            advance()
        above = np.concatenate(below, axis=2) if r + 1 < len(rows) else None
        yield top, np.concatenate(parts, axis=-1)
