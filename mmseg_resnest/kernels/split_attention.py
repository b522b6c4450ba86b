# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Batch norm, ReLU and split attention of a block in few passes over its feature map.

The feature map y (N, K, H, W) leaves a convolution; its K = radix * C channels are the splits, one
after the other. With u = (y - mean) * invstd and z = weight * u + bias:

    gap[n, c]    = mean over the pixels and sum over the splits of relu(z)
    share[n, k]  = what the gate makes of gap
    out[n, c, p] = sum over the splits of share * relu(z)

Forward, y is read twice and out written; relu(z) is never stored, the backward pass makes it again
from y, which the batch norm has to keep anyway. With g the gradient of out, d that of gap, P pixels
and m = [z > 0], the gradient of z is ``dz = m * (share * g + d / P)``. All that a batch norm needs
of it are two sums, and they can be had before d is known:

    sum dz     = sum over n of  share * (sum of m g)   + d / P * (sum of m)
    sum dz * u = sum over n of  share * (sum of m g u) + d / P * (sum of m u)

So backward y and g are read twice: for the sums, from which the gradient of the gate follows, and
for the gradient of y. (Ioffe and Szegedy, arXiv 1502.03167, section 3, for the batch norm.)

Each pass is a kernel in Triton (:mod:`.triton_split_attention`) with its plain form here, which
is its reference and takes its place where it fails.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import gpu

__all__ = ["Norm", "fits", "split_attention"]


class Norm(NamedTuple):
    """A batch norm as numbers, each (K,).

    Attributes:
        mean: What is taken off.
        invstd: What the rest is multiplied by.
        weight: The norm's weight.
        bias: Its bias.
        of_batch: Whether mean and invstd are those of the batch, so that gradients go through them.
    """

    mean: Tensor
    invstd: Tensor
    weight: Tensor
    bias: Tensor
    of_batch: bool


def fits(y: Tensor) -> bool:
    """Whether the kernels are made for a map: its type, and places in an image within 32 bits."""
    return y.is_floating_point() and y.dim() == 4 and 0 < y.numel() // max(len(y), 1) < 2**31


def split_attention(y: Tensor, norm: Norm, radix: int, gate: Callable[[Tensor], Tensor]) -> Tensor:
    """The split attention of a convolution's output.

    Args:
        y: (N, radix * C, H, W), float16, bfloat16, float32 or float64, on any device.
        norm: The batch norm before the ReLU; gradients reach its weight and bias, and y through
            its statistics where they are the batch's.
        radix: Number of splits.
        gate: Turns means (N, C, 1, 1), of y's dtype, into shares (N, radix * C, 1, 1).

    Returns:
        (N, C, H, W) of y's dtype and memory format. Sums are made in float32 (float64 for
        float64).
    """
    y = y.contiguous(memory_format=_layout(y))
    gap, map_token, sums_token = _Pool.apply(
        y, norm.mean, norm.invstd, norm.weight, norm.bias, radix, norm.of_batch
    )
    shares = gate(gap[:, :, None, None]).flatten(1)
    fixed = (tensor.detach() for tensor in (y, norm.mean, norm.invstd, norm.weight, norm.bias))
    return _Weigh.apply(map_token, sums_token, shares, *fixed)


class _Pool(torch.autograd.Function):
    """Means over the image; its backward pass is that of the whole block.

    Beside the means it returns two tokens without a value, for :class:`_Weigh`. What flows back
    through them as their gradients is what is needed here: g, and the shares with the two sums of
    each. Whatever runs between the two (the gate) is ordinary autograd.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor,
        radix: int, of_batch: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Gap (N, C) of y's dtype, and the tokens."""
        sums = pooled_sums(y, mean, invstd, weight, bias)
        ctx.save_for_backward(y, mean, invstd, weight, bias, sums[1:])
        ctx.of_batch = of_batch
        count, channels, height, width = y.shape
        channels //= radix
        gap = sums[0].view(count, radix, channels).sum(1) / (height * width)
        map_token = y.new_empty(()).expand(count, channels, height, width)
        return gap.to(y.dtype), map_token, sums.new_empty(()).expand(sums.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_gap: Tensor, g: Tensor, from_out: Tensor) -> tuple[Any, ...]:
        """Gradients of y, weight and bias."""
        y, mean, invstd, weight, bias, from_gap = ctx.saved_tensors
        count, channels, height, width = y.shape
        d_gap = d_gap.to(from_out.dtype) / (height * width)
        shares = from_out[0]
        d_sums = (shares * from_out[1:]).sum(1)
        d_sums += (d_gap.repeat(1, channels // d_gap.shape[1]) * from_gap).sum(1)
        d_bias, d_weight = d_sums
        d_y = None
        if ctx.needs_input_grad[0]:
            means = d_sums / (count * height * width) if ctx.of_batch else torch.zeros_like(d_sums)
            d_y = gradient(g, d_gap, shares, means, y, mean, invstd, weight, bias)
        return d_y, None, None, d_weight.to(weight.dtype), d_bias.to(bias.dtype), None, None


class _Weigh(torch.autograd.Function):
    """The sum of the splits by their shares; see :class:`_Pool`."""

    @staticmethod
    def forward(
        ctx: Any, map_token: Tensor, sums_token: Tensor, shares: Tensor, y: Tensor, mean: Tensor,
        invstd: Tensor, weight: Tensor, bias: Tensor,
    ) -> Tensor:  # fmt: skip
        """Out (N, C, H, W) of y's dtype and layout."""
        ctx.dtype = shares.dtype
        shares = shares.to(sums_token.dtype)
        ctx.save_for_backward(shares, y, mean, invstd, weight, bias)
        radix = y.shape[1] // map_token.shape[1]
        return weighted_sum(y, shares, mean, invstd, weight, bias, radix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        """Gradient of the shares; g, the shares and two sums for :class:`_Pool`."""
        shares, y, mean, invstd, weight, bias = ctx.saved_tensors
        # From a mean it comes expanded, from some layers in another layout.
        g = g.contiguous(memory_format=_layout(y))
        sums = gradient_sums(g, y, mean, invstd, weight, bias)
        for_pool = torch.cat([shares[None], sums[1:]])
        return g, for_pool, sums[0].to(ctx.dtype), None, None, None, None, None


# --- the passes: the kernel where it runs, or else the plain form


def pooled_sums(y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Sums over the pixels of relu(z), m and m u, (3, N, K), float32 (float64 for float64)."""
    if gpu.usable(y):
        with gpu.falling_back():
            from . import triton_split_attention as kernels

            return kernels.pooled_sums(y, mean, invstd, weight, bias)
    u, z = _normalised(y, mean, invstd, weight, bias)
    positive = (z > 0).to(u.dtype)
    return torch.stack([z.relu(), positive, positive * u]).sum((3, 4))


def weighted_sum(
    y: Tensor, shares: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor,
    radix: int,
) -> Tensor:  # fmt: skip
    """Sum of shares (N, K) * relu(z) over the splits, (N, C, H, W), of y's dtype and layout."""
    if gpu.usable(y):
        with gpu.falling_back():
            from . import triton_split_attention as kernels

            return kernels.weighted_sum(y, shares, mean, invstd, weight, bias, radix)
    _, z = _normalised(y, mean, invstd, weight, bias)
    parts = (z.relu() * shares[:, :, None, None]).chunk(radix, dim=1)
    return torch.stack(parts).sum(0).to(y.dtype).contiguous(memory_format=_layout(y))


def gradient_sums(
    g: Tensor, y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Sums over the pixels of g relu(z), m g and m g u, (3, N, K), of the same dtype."""
    if gpu.usable(y):
        with gpu.falling_back():
            from . import triton_split_attention as kernels

            return kernels.gradient_sums(g, y, mean, invstd, weight, bias)
    u, z = _normalised(y, mean, invstd, weight, bias)
    positive = g.to(u.dtype).repeat(1, y.shape[1] // g.shape[1], 1, 1) * (z > 0)
    return torch.stack([positive * z, positive, positive * u]).sum((3, 4))


def gradient(
    g: Tensor, d_gap: Tensor, shares: Tensor, means: Tensor, y: Tensor, mean: Tensor,
    invstd: Tensor, weight: Tensor, bias: Tensor,
) -> Tensor:  # fmt: skip
    """Gradient of y, of its dtype and layout: weight * invstd * (dz - means[0] - u means[1]).

    Args:
        g: (N, C, H, W), in y's layout.
        d_gap: (N, C), divided by the pixels already.
        shares: (N, K).
        means: (2, K), dz and dz u on average, or zeros.
        y: (N, K, H, W).
        mean: (K,), as the rest: the norm's.
        invstd: See above.
        weight: See above.
        bias: See above.
    """
    if gpu.usable(y):
        with gpu.falling_back():
            from . import triton_split_attention as kernels

            return kernels.gradient(g, d_gap, shares, means, y, mean, invstd, weight, bias)
    u, z = _normalised(y, mean, invstd, weight, bias)
    radix = y.shape[1] // g.shape[1]
    d_z = g.to(u.dtype).repeat(1, radix, 1, 1) * shares[:, :, None, None]
    d_z = (d_z + d_gap.repeat(1, radix)[:, :, None, None]) * (z > 0)
    first, second, scale = (v[:, None, None] for v in (*means, weight.to(u.dtype) * invstd))
    return ((d_z - first - u * second) * scale).to(y.dtype)


def _normalised(
    y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Both u and z, in the dtype that sums are made in."""
    values = (v.to(sums_dtype(y))[:, None, None] for v in (mean, invstd, weight, bias))
    mean, invstd, weight, bias = values
    u = (y.to(mean.dtype) - mean) * invstd
    return u, u * weight + bias


def sums_dtype(y: Tensor) -> torch.dtype:
    """What sums are made in."""
    return torch.promote_types(y.dtype, torch.float32)


@functools.lru_cache(maxsize=64)
def no_norm(channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Zeros and ones (K,), for a norm that is a bias alone."""
    with torch.inference_mode(False):  # they outlive the mode, and gradients may need them then
        return torch.zeros(channels, device=device), torch.ones(channels, device=device)


def _layout(y: Tensor) -> torch.memory_format:
    """Channels last where it is that alone: a map of one channel or pixel is both."""
    if y.is_contiguous() or not y.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
