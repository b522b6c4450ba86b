# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Convolutions as matrix products, for training on a CPU with feature maps channels last.

Channels last, a 1x1 convolution is one matrix product, and the gradient of a 3x3 convolution's
weights is one for each of the nine taps, of the pixels where the tap does not lie in the padding.
An atrous rate of 36 on maps of 60 pixels leaves 36% of them. oneDNN's gradient of the weights
computes all products, and takes longer with many channels even without dilation. ``conv2d`` of
torch is the plain reference.

torch multiplies matrices by MKL, which has no AVX-512 code for processors of other makers than
Intel. On AMD's, the products are 1x1 convolutions, which oneDNN computes: on a Zen 5 at twice the
speed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..io.processes import processor_maker

__all__ = ["ProductConv2d", "conv3x3"]

# Input channels from which on the gradient of 3x3 weights is quicker by taps: below, copying the
# pixels of each tap takes what the products save.
_MANY_CHANNELS = 1024
# Share of the products on the map below which output and input's gradient are quicker
# by taps as well.
_FEW_PRODUCTS = 0.45

Tap = tuple[int, int, tuple[slice, slice], tuple[slice, slice]]


@functools.cache
def _by_onednn() -> bool:
    """Whether oneDNN's 1x1 convolutions are quicker than torch's matrix products."""
    return processor_maker() == "AuthenticAMD" and torch.backends.mkldnn.is_available()


def taps(height: int, width: int, dilation: int) -> Iterator[Tap]:
    """The taps of a 3x3 convolution with ``padding=dilation`` that reach the map, the centre first.

    Yields:
        Row and column of the tap's weight, the part of the input (rows, columns) that it is
        multiplied with, and the part of the output that this goes to, of the same size.
    """
    for row, column in ((1, 1), *((i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1))):
        down, across = (row - 1) * dilation, (column - 1) * dilation
        if abs(down) < height and abs(across) < width:
            yield (
                row,
                column,
                (_part(height, down), _part(width, across)),
                (_part(height, -down), _part(width, -across)),
            )


def _part(length: int, shift: int) -> slice:
    """Places below ``length`` that are still places when ``shift`` is taken away."""
    return slice(max(shift, 0), length + min(shift, 0))


def _few_products(x: Tensor, dilation: int) -> bool:
    """Whether most products of a 3x3 convolution of ``x`` (N, C, H, W) are with padding."""
    share = 1.0
    for length in x.shape[2:]:
        share *= (length + 2 * max(length - dilation, 0)) / (3 * length)
    return share < _FEW_PRODUCTS


def _times(maps: Tensor, matrix: Tensor) -> Tensor:
    """Pixels of maps (N, H, W, I) times a matrix (I, J): (N, H, W, J)."""
    if _by_onednn():
        weight = matrix.t()[..., None, None]
        return F.conv2d(maps.permute(0, 3, 1, 2), weight).permute(0, 2, 3, 1)
    return maps @ matrix


def _sum_of_outer(left: Tensor, right: Tensor, out: Tensor) -> None:
    """The sum of the outer products of all pixels of (N, H, W, O) and (N, H, W, C), into (O, C)."""
    if not _by_onednn():
        torch.mm(left.flatten(0, 2).t(), right.flatten(0, 2), out=out)
        return
    last = {"memory_format": torch.channels_last}
    outputs, inputs = (maps.permute(0, 3, 1, 2).contiguous(**last) for maps in (left, right))
    made = torch.ops.aten.convolution_backward(
        outputs, inputs, out[..., None, None], None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
        [False, True, False],
    )  # fmt: skip
    out.copy_(made[1].flatten(1))


class _Conv3x3(torch.autograd.Function):
    """A 3x3 convolution of stride 1 with ``padding=dilation``, in one group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        if not _few_products(x, dilation):
            return F.conv2d(x, weight, bias, 1, dilation, dilation)
        maps, matrices = x.permute(0, 2, 3, 1), weight.permute(2, 3, 1, 0)
        out = _sum_of_taps(maps, matrices, dilation, forward=True)
        if bias is not None:
            out += bias.view(-1, 1, 1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dilation = ctx.dilation
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _gradient_of_input(gradient, x, weight, dilation)
        if ctx.needs_input_grad[1]:
            of_weight = _gradient_of_weight(gradient, x, weight, dilation)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None


def _sum_of_taps(maps: Tensor, matrices: Tensor, dilation: int, forward: bool) -> Tensor:
    """Maps (N, H, W, I) times the matrices (3, 3, I, J) of the taps, each at its place.

    Returns:
        (N, J, H, W), channels last, and no view of another tensor: what follows may change it.
    """
    count, height, width = maps.shape[:3]
    out = torch.empty(
        (count, matrices.shape[3], height, width),
        dtype=maps.dtype,
        device=maps.device,
        memory_format=torch.channels_last,
    )
    pixels = out.permute(0, 2, 3, 1)
    for row, column, source, target in taps(height, width, dilation):
        if not forward:
            source, target = target, source
        made = _times(maps[:, source[0], source[1]], matrices[row, column])
        if (row, column) == (1, 1):  # the first, which reaches every pixel
            pixels.copy_(made)
        else:
            pixels[:, target[0], target[1]] += made
    return out


def _gradient_of_input(gradient: Tensor, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    if _few_products(x, dilation):
        maps, matrices = gradient.permute(0, 2, 3, 1), weight.permute(2, 3, 0, 1)
        return _sum_of_taps(maps, matrices, dilation, forward=False)
    edges = [dilation, dilation]
    made: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], edges, edges, False, [0, 0], 1, [True, False, False]
    )[0]
    return made


def _gradient_of_weight(gradient: Tensor, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    made = torch.zeros_like(weight, memory_format=torch.channels_last)
    matrices = made.permute(2, 3, 0, 1)  # (3, 3, O, C), the rows apart from each other in memory
    inputs, outputs = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    for row, column, source, target in taps(x.shape[2], x.shape[3], dilation):
        left, right = outputs[:, target[0], target[1]], inputs[:, source[0], source[1]]
        _sum_of_outer(left, right, matrices[row, column])
    return made


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """``conv2d`` of stride 1 with ``padding=dilation``, whose gradients are matrix products.

    Only the order of sums differs. There are no second derivatives.

    Args:
        x: (N, C, H, W), fastest in channels last.
        weight: (O, C, 3, 3).
        bias: (O,).
        dilation: Dilation and padding.

    Returns:
        (N, O, H, W), channels last.
    """
    made: Tensor = _Conv3x3.apply(x, weight, bias, dilation)
    return made


class ProductConv2d(nn.Conv2d):
    """A convolution that is trained by matrix products where those are faster.

    Parameters and names are ``nn.Conv2d``'s, results up to rounding. ``nn.Conv2d`` computes what
    is not float32 or float64 on a CPU, uses autocast, has groups, a stride or another padding than
    its dilation, needs no gradient or is traced. There are no second derivatives.
    """

    @classmethod
    def like(cls, conv: nn.Conv2d) -> ProductConv2d:
        """A convolution with the options, the parameters and the mode of another one."""
        made = cls(
            conv.in_channels,
            conv.out_channels,
            cast(Any, conv.kernel_size),
            cast(Any, conv.stride),
            cast(Any, conv.padding),
            cast(Any, conv.dilation),
            conv.groups,
            bias=False,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        made.weight, made.bias = conv.weight, conv.bias
        return made.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, O, H', W')."""
        if (
            isinstance(input, Tensor)  # and no stand-in, with which torch.fx traces
            and self._suits
            and input.requires_grad | self.weight.requires_grad
            and input.dim() == 4
            and torch.is_grad_enabled()
            and input.device.type == "cpu"
            and input.dtype == self.weight.dtype
            and input.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
        ):
            if self.kernel_size == (1, 1):
                if _by_onednn():
                    return super().forward(input)
                # Channels last, no pixel is moved.
                out = F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
                return out.permute(0, 3, 1, 2)
            return conv3x3(input, self.weight, self.bias, self.dilation[0])
        return super().forward(input)

    @property
    def _suits(self) -> bool:
        if self.groups != 1 or self.stride != (1, 1) or self.padding_mode != "zeros":
            return False
        if self.kernel_size == (1, 1):
            return self.padding == (0, 0)
        edges = (self.dilation[0],) * 2
        return (
            self.kernel_size == (3, 3)
            and self.padding == self.dilation == edges
            and self.in_channels >= _MANY_CHANNELS
        )
