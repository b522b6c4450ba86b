# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""3x3 convolutions of stride 1 with fewer multiplications (Winograd's minimal filtering).

Of ``m`` neighbouring outputs and three weights, direct convolution makes 3 m products a row; Lavin
and Gray (arXiv 1509.09308) make m + 2, and the square of that saving in two dimensions: 36 products
instead of 144 for 4x4 outputs. The products become one matrix product for each of the m + 2 squared
places, which is what a CPU does best.

A dilated convolution is as many small ones as there are remainders of the place modulo the
dilation, each on its own part of the map. Parts of one or two pixels, which the atrous rates 24 and
36 leave of a small map, have their own forms: what would be multiplied with padding is left out.

The transforms' points are small rational numbers, so that float32 loses little: the largest error
is about 1e-5 of the largest output, where direct convolution's is 1e-6. ``conv2d`` of torch is the
plain reference.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["Form", "choose_form", "convolve", "transform_weight"]

# Points of the polynomials, by the number of outputs; the last one is infinity. The point 1 comes
# second: its column of the output transform is all ones, which makes it the place for the bias.
_POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    3: (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2)),
    4: (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2)),
}
# Bytes of the transformed input that are made at a time.
_CHUNK_BYTES = 2**26


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
    data: tuple[tuple[Fraction, ...], ...]
    weight: tuple[tuple[Fraction, ...], ...]
    output: tuple[tuple[Fraction, ...], ...]
    bias: int

    @property
    def products(self) -> int:
        """Products of a tile."""
        return len(self.data)


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), the lowest first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [
            high - root * low
            for high, low in zip(shifted, [*coefficients, Fraction(0)], strict=True)
        ]
    return coefficients


@functools.cache
def _tile(outputs: int) -> Form:
    """Cook and Toom's construction: interpolation of a product of polynomials at the points."""
    points = _POINTS[outputs]
    count = outputs + 2
    data = []
    weight = []
    for i, point in enumerate(points):
        others = [other for k, other in enumerate(points) if k != i]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        data.append((*_polynomial(others), Fraction(0)))
        weight.append(tuple(point**k / scale for k in range(3)))
    data.append(tuple(_polynomial(list(points))))
    weight.append((Fraction(0), Fraction(0), Fraction(1)))
    output = tuple(
        (*(point**k for point in points), Fraction(int(k == outputs - 1))) for k in range(outputs)
    )
    return Form(outputs, 1, count, tuple(data), tuple(weight), output, 1)


def _fractions(*rows: tuple[int, ...]) -> tuple[tuple[Fraction, ...], ...]:
    return tuple(tuple(map(Fraction, row)) for row in rows)


# A part of one pixel between padding, and of two: y0 = w1 x0 + w2 x1, y1 = w0 x0 + w1 x1.
_ONE = Form(1, 0, 1, _fractions((1,)), _fractions((0, 1, 0)), _fractions((1,)), 0)
_TWO = Form(
    2, 0, 2,
    _fractions((1, 1), (0, 1), (1, 0)),
    _fractions((0, 1, 0), (0, -1, 1), (1, -1, 0)),
    _fractions((1, 1, 0), (1, 0, 1)),
    0,
)  # fmt: skip


@functools.cache
def choose_form(length: int, dilation: int) -> Form:
    """The form with the fewest products along an axis of ``length`` pixels."""
    part = -(-length // dilation)
    if part <= 2:
        return _ONE if part == 1 else _TWO
    # Of equals the larger tile, which has the smaller transforms.
    return min(
        (_tile(m) for m in (4, 3, 2)), key=lambda form: -(-part // form.outputs) * form.products
    )


def _matrix(rows: tuple[tuple[Fraction, ...], ...]) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)


@functools.cache
def _transforms(down: Form, across: Form) -> tuple[Tensor, Tensor]:
    """Of the data and of the output, over both axes at once, float32."""
    data = torch.kron(_matrix(down.data), _matrix(across.data))
    output = torch.kron(_matrix(down.output), _matrix(across.output))
    return data.float(), output.float()


def transform_weight(weight: Tensor, groups: int, down: Form, across: Form) -> Tensor:
    """Weights as the products need them.

    Args:
        weight: (O, C / groups, 3, 3).
        groups: Groups of the convolution.
        down: Form of the height.
        across: Form of the width.

    Returns:
        (groups, products of both forms, C / groups, O / groups), float32.
    """
    transform = torch.kron(_matrix(down.weight), _matrix(across.weight)).to(weight.device)
    out, inner = weight.shape[:2]
    made = torch.empty(groups, len(transform), inner, out // groups, device=weight.device)
    for group, part in enumerate(weight.chunk(groups)):
        flat = part.double().permute(2, 3, 1, 0).reshape(9, -1)
        made[group] = (transform @ flat).view(len(transform), inner, out // groups)
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
    groups, products, inner, outer = weight.shape
    count, _, height, width = images.shape
    tiles_down = -(-height // (dilation * down.outputs))
    tiles_across = -(-width // (dilation * across.outputs))
    # What the tiles cover; results beyond the map are thrown away.
    full = (tiles_down * down.outputs * dilation, tiles_across * across.outputs * dilation)
    data, output = _transforms(down, across)
    bias_place = down.bias * across.products + across.bias
    result = images.new_empty(count, *full, groups * outer)
    padded = images.new_zeros(
        full[0] + (down.taken - down.outputs) * dilation,
        full[1] + (across.taken - across.outputs) * dilation,
        groups * inner,
    )
    first, left = down.before * dilation, across.before * dilation
    row_bytes = 4 * products * dilation * dilation * tiles_across * inner
    step = max(1, _CHUNK_BYTES // row_bytes)
    for image, out in zip(images.permute(0, 2, 3, 1), result, strict=True):
        padded[first : first + height, left : left + width] = image
        for start in range(0, tiles_down, step):
            rows = min(step, tiles_down - start)
            shape = (rows, dilation, tiles_across, dilation)
            for group in range(groups):
                windows = _windows(
                    padded[:, :, group * inner : (group + 1) * inner],
                    (down.taken, across.taken), (down.outputs, across.outputs),
                    dilation, start, shape,
                )  # fmt: skip
                flat = windows.reshape(down.taken * across.taken, -1)
                made = (data @ flat).view(products, -1, inner)
                sums = torch.bmm(made, weight[group])
                if bias is not None:
                    sums[bias_place] += bias[group * outer : (group + 1) * outer]
                tiles = (output @ sums.view(products, -1)).view(
                    down.outputs, across.outputs, *shape, outer
                )
                place = (
                    out[:, :, group * outer : (group + 1) * outer]
                    .unflatten(1, (tiles_across, across.outputs, dilation))
                    .unflatten(0, (tiles_down, down.outputs, dilation))[start : start + rows]
                )
                tiles = tiles.permute(2, 0, 3, 4, 1, 5, 6)
                if relu:
                    torch.clamp_min(tiles, 0, out=place)
                else:
                    place.copy_(tiles)
    return result[:, :height, :width].contiguous().permute(0, 3, 1, 2)


def _windows(
    padded: Tensor,
    taken: tuple[int, int],
    outputs: tuple[int, int],
    dilation: int,
    start: int,
    shape: tuple[int, int, int, int],
) -> Tensor:
    """A view of what the tiles read: (taken down, taken across, *shape, C)."""
    row, column, channel = padded.stride()
    tiles_down, _, tiles_across, _ = shape
    strides = (
        dilation * row, dilation * column, outputs[0] * dilation * row, row,
        outputs[1] * dilation * column, column, channel,
    )  # fmt: skip
    offset = padded.storage_offset() + start * outputs[0] * dilation * row
    size = (*taken, tiles_down, dilation, tiles_across, dilation, padded.shape[2])
    return padded.as_strided(size, strides, offset)
