# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""3x3 convolutions of stride 1 with fewer multiplications (Winograd's minimal filtering).

Direct convolution takes 3 m products for m neighbouring outputs of a row; the method of Lavin and
Gray (arXiv 1509.09308) takes m + 2, and in two dimensions 36 instead of 144 for 4x4 outputs. They
are computed as (m + 2) squared matrix products.

A dilated convolution is as many small ones as there are remainders of the place modulo the
dilation, each on its own part of the map. Parts of one or two pixels, which the atrous rates 24 and
36 leave of a small map, have their own forms: what would be multiplied with padding is left out.

In float32 the largest error is about 1e-5 of the largest output (direct convolution: 1e-6).
``conv2d`` of torch is the plain reference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Form", "choose_form", "convolve", "transform_weight"]

_Matrix = tuple[tuple[float, ...], ...]

# Bytes of the transformed input that are made at a time.
_CHUNK_BYTES = 2**26
# Bytes of the float64 weights that are made at a time.
_CACHED_BYTES = 2**22


@dataclass(frozen=True)
class Form:
    """One axis of the algorithm.

    Attributes:
        outputs: Outputs of a tile.
        before: Inputs before the first output that are read; 0 where they are padding.
        taken: Inputs that a tile reads.
        data: (products, taken) transform of the inputs.
        weight: (products, 3) transform of the weights.
        output: (outputs, products) transform of the products.
        bias: The product to which the bias is added.
    """

    outputs: int
    before: int
    taken: int
    data: _Matrix
    weight: _Matrix
    output: _Matrix
    bias: int

    @property
    def products(self) -> int:
        """Products of a tile."""
        return len(self.data)


# A part of one pixel between padding, and of two: y0 = w1 x0 + w2 x1, y1 = w0 x0 + w1 x1.
_ONE = Form(1, 0, 1, ((1,),), ((0, 1, 0),), ((1,),), 0)
_TWO = Form(
    2,
    0,
    2,
    ((1, 1), (0, 1), (1, 0)),
    ((0, 1, 0), (0, -1, 1), (1, -1, 0)),
    ((1, 1, 0), (1, 0, 1)),
    0,
)
# Cook and Toom's interpolation at 0, 1, -1, 1/2, -2 and infinity. The point 1 comes second: its
# column of the output transform is all ones, which makes it the place for the bias.
_FOUR = Form(
    4,
    1,
    6,
    (
        (1, -3 / 2, -2, 3 / 2, 1, 0),
        (0, -1, 1 / 2, 5 / 2, 1, 0),
        (0, 1, -5 / 2, 1 / 2, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 1 / 2, -1, -1 / 2, 1, 0),
        (0, 1, -3 / 2, -2, 3 / 2, 1),
    ),
    (
        (1, 0, 0),
        (1 / 3, 1 / 3, 1 / 3),
        (-1 / 3, 1 / 3, -1 / 3),
        (-16 / 15, -8 / 15, -4 / 15),
        (1 / 15, -2 / 15, 4 / 15),
        (0, 0, 1),
    ),
    (
        (1, 1, 1, 1, 1, 0),
        (0, 1, -1, 1 / 2, -2, 0),
        (0, 1, 1, 1 / 4, 4, 0),
        (0, 1, -1, 1 / 8, -8, 1),
    ),
    1,
)


def choose_form(length: int, dilation: int) -> Form:
    """The form for an axis of ``length`` pixels.

    Tiles of two or three outputs would save some products where four do not divide the length. They
    are not used: one form for nearly all sizes means one set of transformed weights.
    """
    part = -(-length // dilation)
    return {1: _ONE, 2: _TWO}.get(part, _FOUR)


def _matrix(rows: _Matrix) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@functools.cache
def _transforms(down: Form, across: Form) -> tuple[Tensor, Tensor]:
    """Of the data and of the output, over both axes at once, float32."""
    data = torch.kron(_matrix(down.data), _matrix(across.data))
    output = torch.kron(_matrix(down.output), _matrix(across.output))
    return data.float(), output.float()


def transform_weight(weight: Tensor, groups: int, down: Form, across: Form) -> Tensor:
    """Weights (O, C / groups, 3, 3) as the products need them, for the forms of height and width.

    Returns:
        (groups, products of both forms, C / groups, O / groups), float32.
    """
    transform = torch.kron(_matrix(down.weight), _matrix(across.weight))
    out, inner = weight.shape[:2]
    outer = out // groups
    made = torch.empty(groups, len(transform), inner, outer)
    step = max(1, _CACHED_BYTES // (8 * len(transform) * outer))
    for group, part in enumerate(weight.detach().chunk(groups)):
        for start in range(0, inner, step):  # few enough that the float64 values stay in the cache
            some = part[:, start : start + step].permute(2, 3, 1, 0).reshape(9, -1).double()
            made[group, :, start : start + step] = (transform @ some).view(
                len(transform), -1, outer
            )
    return made


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    down: Form,
    across: Form,
    relu: bool = False,
) -> Tensor:
    """``conv2d`` with 3x3 weights, stride 1 and ``padding=dilation``.

    Args:
        images: (N, C, H, W), float32; channels last is read without a copy.
        weight: What :func:`transform_weight` made of the weights.
        bias: (O,).
        dilation: Dilation and padding.
        down: Form of the height; :func:`choose_form` gives the one for H.
        across: Form of the width.
        relu: Whether negative results become 0.

    Returns:
        (N, O, H, W), channels last.
    """
    groups, _, inner, outer = weight.shape
    count, _, height, width = images.shape
    grid = _Grid(height, width, dilation, down, across)
    data, output = _transforms(down, across)
    bias_place = down.bias * across.products + across.bias
    result = images.new_empty(count, *grid.covered, groups * outer)
    padded = grid.frame(images.new_zeros, groups * inner)
    for image, out in zip(images.permute(0, 2, 3, 1), result, strict=True):
        grid.inside(padded)[...] = image
        for start, rows in grid.steps(inner):
            for group in range(groups):
                made = grid.transformed(padded, data, start, rows, group, inner)
                sums = torch.bmm(made, weight[group])
                if bias is not None:
                    sums[bias_place] += bias[group * outer : (group + 1) * outer]
                tiles = (output @ sums.flatten(1)).view(
                    down.outputs, across.outputs, *grid.shape(rows), outer
                )
                place = grid.tiles(out[:, :, group * outer : (group + 1) * outer], start, rows)
                if relu:
                    torch.clamp_min(tiles, 0, out=place)
                else:
                    place.copy_(tiles)
    return result[:, :height, :width].contiguous().permute(0, 3, 1, 2)


class _Grid:
    """How the tiles of both forms lie on a map.

    ``covered`` is height and width of what the tiles make, not smaller than the map.
    """

    def __init__(self, height: int, width: int, dilation: int, down: Form, across: Form) -> None:
        self.size = (height, width)
        self.dilation, self.down, self.across = dilation, down, across
        self.tiles_down = -(-height // (dilation * down.outputs))
        self.tiles_across = -(-width // (dilation * across.outputs))
        self.covered = (
            self.tiles_down * down.outputs * dilation,
            self.tiles_across * across.outputs * dilation,
        )

    def shape(self, rows: int) -> tuple[int, int, int, int]:
        """Tiles of some rows of tiles: down, remainder, across, remainder."""
        return rows, self.dilation, self.tiles_across, self.dilation

    def frame(self, new_zeros: Callable[..., Tensor], channels: int) -> Tensor:
        """Room for a map with the padding around it, (height, width, C)."""
        return new_zeros(
            self.covered[0] + (self.down.taken - self.down.outputs) * self.dilation,
            self.covered[1] + (self.across.taken - self.across.outputs) * self.dilation,
            channels,
        )

    def inside(self, padded: Tensor) -> Tensor:
        """The map's own place in the frame."""
        top, left = self.down.before * self.dilation, self.across.before * self.dilation
        return padded[top : top + self.size[0], left : left + self.size[1]]

    def steps(self, channels: int) -> Iterator[tuple[int, int]]:
        """First row of tiles and number of rows, few enough to be made at a time."""
        products = self.down.products * self.across.products
        row_bytes = 4 * products * self.dilation**2 * self.tiles_across * channels
        step = max(1, _CHUNK_BYTES // row_bytes)
        for start in range(0, self.tiles_down, step):
            yield start, min(step, self.tiles_down - start)

    def transformed(
        self, padded: Tensor, data: Tensor, start: int, rows: int, group: int, channels: int
    ) -> Tensor:
        """The transformed input of some rows of tiles, (products, tiles, channels)."""
        part = padded[:, :, group * channels : (group + 1) * channels]
        row, column, channel = part.stride()
        d = self.dilation
        windows = part.as_strided(
            (self.down.taken, self.across.taken, *self.shape(rows), channels),
            (
                d * row, d * column, self.down.outputs * d * row, row,
                self.across.outputs * d * column, column, channel,
            ),
            part.storage_offset() + start * self.down.outputs * d * row,
        )  # fmt: skip
        flat = windows.reshape(self.down.taken * self.across.taken, -1)
        return (data @ flat).view(len(data), -1, channels)

    def tiles(self, out: Tensor, start: int, rows: int) -> Tensor:
        """A view of a covered map (height, width, C) as tiles.

        Returns:
            (outputs down, outputs across, *shape(rows), C).
        """
        split = out.unflatten(1, (self.tiles_across, self.across.outputs, self.dilation))
        split = split.unflatten(0, (self.tiles_down, self.down.outputs, self.dilation))
        return split[start : start + rows].permute(1, 4, 0, 2, 3, 5, 6)
