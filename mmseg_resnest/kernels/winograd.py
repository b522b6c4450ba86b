# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""3x3 convolutions of stride 1 with fewer multiplications (Winograd's minimal filtering).

Direct convolution takes 3 m products for m neighbouring outputs of a row; the method of Lavin and
Gray (arXiv 1509.09308) takes m + 2, and in two dimensions 36 instead of 144 for 4x4 outputs. They
are computed as 36 matrix products.

A dilated convolution is as many small ones as there are remainders of the place modulo the
dilation, each on its own part of the map.

Weights are transformed at each call, some channels at a time: that takes a few percent of the
products' time, and kept they would take four times the memory of the weights. In float32 the
largest error is about 1e-5 of the largest output (direct convolution: 1e-6). ``conv2d`` of torch is
the plain reference.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["convolve", "saved"]

_Matrix = tuple[tuple[float, ...], ...]

# Outputs of a tile along one axis, inputs that it reads, and products that it takes.
_OUTPUTS, _INPUTS = 4, 6
# Cook and Toom's interpolation at 0, 1, -1, 1/2, -2 and infinity: the transforms of the inputs, of
# the weights, and of the products to the outputs. The point 1 comes second: its column of the
# output transform is all ones, which makes it the place for the bias.
_DATA: _Matrix = (
    (1, -3 / 2, -2, 3 / 2, 1, 0),
    (0, -1, 1 / 2, 5 / 2, 1, 0),
    (0, 1, -5 / 2, 1 / 2, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 1 / 2, -1, -1 / 2, 1, 0),
    (0, 1, -3 / 2, -2, 3 / 2, 1),
)
_WEIGHT: _Matrix = (
    (1, 0, 0),
    (1 / 3, 1 / 3, 1 / 3),
    (-1 / 3, 1 / 3, -1 / 3),
    (-16 / 15, -8 / 15, -4 / 15),
    (1 / 15, -2 / 15, 4 / 15),
    (0, 0, 1),
)
_OUTPUT: _Matrix = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, -2, 0),
    (0, 1, 1, 1 / 4, 4, 0),
    (0, 1, -1, 1 / 8, -8, 1),
)
_BIAS = _INPUTS + 1

# Input channels whose weights are transformed at a time, and bytes of the products of the tiles
# that are made at a time: what a call needs beside input and output.
_CHANNELS = 256
_CHUNK_BYTES = 2**25


@functools.cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Of inputs, weights and products, over both axes at once, float32."""
    matrices = [torch.tensor(rows, dtype=torch.float64) for rows in (_DATA, _WEIGHT, _OUTPUT)]
    data, weight, output = (torch.kron(matrix, matrix).float() for matrix in matrices)
    return data, weight, output


def saved(height: int, width: int, dilation: int) -> float:
    """How many times the products of :func:`convolve` direct convolution takes on a map.

    Products with padding are not counted for direct convolution, which skips most of them; tiles
    that reach over the map's edge are for this one.
    """
    ratio = 1.0
    for length in (height, width):
        direct = length + 2 * max(length - dilation, 0)
        tiles = -(-length // (dilation * _OUTPUTS)) * dilation
        ratio *= direct / (tiles * _INPUTS)
    return ratio


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    groups: int = 1,
    relu: bool = False,
) -> Tensor:
    """``conv2d`` with 3x3 weights, stride 1 and ``padding=dilation``.

    Args:
        images: (N, C, H, W), float32; channels last is read without a copy.
        weight: (O, C / groups, 3, 3); channels last is read without a copy.
        bias: (O,).
        dilation: Dilation and padding.
        groups: Groups of channels.
        relu: Whether negative results become 0.

    Returns:
        (N, O, H, W), channels last.
    """
    outer, inner = weight.shape[0] // groups, weight.shape[1]
    count, _, height, width = images.shape
    maps, taps = images.permute(0, 2, 3, 1), weight.permute(0, 2, 3, 1).flatten(1, 2)
    grid = _Grid(height, width, dilation)
    output = _transforms()[2]
    result = images.new_empty(count, *grid.covered, groups * outer)
    for group in range(groups):
        out = slice(group * outer, (group + 1) * outer)
        one = _transformed_weight(taps[out]) if inner <= _CHANNELS else None
        for some, start, rows in grid.chunks(count, max(min(inner, _CHANNELS), outer)):
            sums = None
            for first in range(0, inner, _CHANNELS):
                last = min(first + _CHANNELS, inner)
                made = one if one is not None else _transformed_weight(taps[out, :, first:last])
                place = slice(group * inner + first, group * inner + last)
                data = grid.transformed(maps[some, :, :, place], start, rows)
                sums = torch.bmm(data, made) if sums is None else sums.baddbmm_(data, made)
                del data
            assert sums is not None
            if bias is not None:
                sums[_BIAS] += bias[out]
            tiles = grid.tiles(result[some, :, :, out], start, rows)
            made = (output @ sums.flatten(1)).view(tiles.shape)
            if relu:
                torch.clamp_min(made, 0, out=tiles)
            else:
                tiles.copy_(made)
    return result[:, :height, :width].contiguous().permute(0, 3, 1, 2)


def _transformed_weight(taps: Tensor) -> Tensor:
    """Weights (O, 9, C) to (36, C, O), a view of another order."""
    transform = _transforms()[1]
    return torch.bmm(transform.expand(len(taps), -1, -1), taps).permute(1, 2, 0)


class _Grid:
    """How the tiles lie on a map.

    ``covered`` is height and width of what the tiles make, not smaller than the map.
    """

    def __init__(self, height: int, width: int, dilation: int) -> None:
        self.size, self.dilation = (height, width), dilation
        self.down, self.across = (-(-edge // (dilation * _OUTPUTS)) for edge in self.size)
        self.covered = (self.down * _OUTPUTS * dilation, self.across * _OUTPUTS * dilation)

    def chunks(self, count: int, channels: int) -> Iterator[tuple[slice, int, int]]:
        """Some images, their first row of tiles and number of rows, to be made at a time."""
        row_bytes = 4 * _INPUTS**2 * self.dilation**2 * self.across * channels
        rows = min(max(1, _CHUNK_BYTES // row_bytes), self.down)
        some = max(1, _CHUNK_BYTES // (row_bytes * self.down))
        for image in range(0, count, some):
            for start in range(0, self.down, rows):
                yield slice(image, image + some), start, min(rows, self.down - start)

    def transformed(self, maps: Tensor, start: int, rows: int) -> Tensor:
        """Some rows of tiles of maps (N, H, W, C), transformed: (36, tiles, C)."""
        d, step = self.dilation, self.dilation * _OUTPUTS
        count, height, width, channels = maps.shape
        framed = maps.new_zeros(count, rows * step + 2 * d, self.covered[1] + 2 * d, channels)
        top = start * step - d
        first, last = max(top, 0), min(top + framed.shape[1], height)
        framed[:, first - top : last - top, d : d + width] = maps[:, first:last]
        image, row, column, channel = framed.stride()
        windows = framed.as_strided(
            (_INPUTS, _INPUTS, count, rows, d, self.across, d, channels),
            (d * row, d * column, image, step * row, row, step * column, column, channel),
        )
        flat = windows.reshape(_INPUTS**2, -1)
        return (_transforms()[0] @ flat).view(_INPUTS**2, -1, channels)

    def tiles(self, out: Tensor, start: int, rows: int) -> Tensor:
        """A view of some rows of tiles of covered maps (N, height, width, C).

        Returns:
            (outputs down, outputs across, N, rows, remainder, tiles across, remainder, C).
        """
        split = out.unflatten(2, (self.across, _OUTPUTS, self.dilation))
        split = split.unflatten(1, (self.down, _OUTPUTS, self.dilation))[:, start : start + rows]
        return split.permute(2, 5, 0, 1, 3, 4, 6, 7)
