# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The passes of :mod:`.split_attention` as kernels in Triton.

A program works on some channels of some pixels of one image; strides say how the map lies in
memory, channels first or last. Sums over the pixels are made in parts, one a program, which torch
adds up: the same bits at every run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .split_attention import sums_dtype

__all__ = ["gradient", "gradient_sums", "pooled_sums", "weighted_sum"]


@triton.jit
def _normalised(y, k, known, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, DTYPE: tl.constexpr):
    """Both u and z of values y (p, k), where ``known`` (k,) says which channels there are."""
    mean = tl.load(mean_ptr + k, mask=known, other=0.0).to(DTYPE)
    invstd = tl.load(invstd_ptr + k, mask=known, other=0.0).to(DTYPE)
    weight = tl.load(weight_ptr + k, mask=known, other=0.0).to(DTYPE)
    bias = tl.load(bias_ptr + k, mask=known, other=0.0).to(DTYPE)
    u = (y.to(DTYPE) - mean[None, :]) * invstd[None, :]
    return u, u * weight[None, :] + bias[None, :]


@triton.jit
def _pooled_sums(
    y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, sums_ptr,
    channels, pixels, image_stride, channel_stride, pixel_stride,
    STEPS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(1)
    image = tl.program_id(2)
    y_ptr += image.to(tl.int64) * image_stride
    total = tl.zeros((PIXELS, CHANNELS), DTYPE)
    count = tl.zeros((PIXELS, CHANNELS), DTYPE)
    moment = tl.zeros((PIXELS, CHANNELS), DTYPE)
    for step in range(STEPS):
        p = (part * STEPS + step) * PIXELS + tl.arange(0, PIXELS)
        inside = (p < pixels)[:, None] & (k < channels)[None, :]
        places = p[:, None] * pixel_stride + k[None, :] * channel_stride
        y = tl.load(y_ptr + places, mask=inside, other=0.0)
        u, z = _normalised(y, k, k < channels, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, DTYPE)
        positive = inside & (z > 0)
        total += tl.where(positive, z, 0.0)
        count += tl.where(positive, 1.0, 0.0)
        moment += tl.where(positive, u, 0.0)
    sums_ptr += (part * 3 * tl.num_programs(2) + image) * channels
    step = tl.num_programs(2) * channels
    tl.store(sums_ptr + k, tl.sum(total, 0), mask=k < channels)
    tl.store(sums_ptr + step + k, tl.sum(count, 0), mask=k < channels)
    tl.store(sums_ptr + 2 * step + k, tl.sum(moment, 0), mask=k < channels)


@triton.jit
def _weighted_sum(
    y_ptr, shares_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, out_ptr,
    channels, pixels, image_stride, channel_stride, pixel_stride, out_image, out_channel, out_pixel,
    RADIX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    image = tl.program_id(2)
    y_ptr += image.to(tl.int64) * image_stride
    out_ptr += image.to(tl.int64) * out_image
    known = c < channels
    inside = (p < pixels)[:, None] & known[None, :]
    out = tl.zeros((PIXELS, CHANNELS), DTYPE)
    for split in tl.static_range(RADIX):
        k = c + split * channels
        places = p[:, None] * pixel_stride + k[None, :] * channel_stride
        y = tl.load(y_ptr + places, mask=inside, other=0.0)
        _, z = _normalised(y, k, known, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, DTYPE)
        share = tl.load(shares_ptr + image * RADIX * channels + k, mask=known, other=0.0)
        out += tl.where(z > 0, z, 0.0) * share[None, :]
    places = p[:, None] * out_pixel + c[None, :] * out_channel
    tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_sums(
    g_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, sums_ptr,
    channels, pixels, image_stride, channel_stride, pixel_stride, g_image, g_channel, g_pixel,
    RADIX: tl.constexpr, STEPS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(1)
    image = tl.program_id(2)
    y_ptr += image.to(tl.int64) * image_stride
    g_ptr += image.to(tl.int64) * g_image
    sums_ptr += (part * 3 * tl.num_programs(2) + image) * RADIX * channels
    step_of_sums = tl.num_programs(2) * RADIX * channels
    known = c < channels
    for split in tl.static_range(RADIX):
        k = c + split * channels
        total = tl.zeros((PIXELS, CHANNELS), DTYPE)
        passed = tl.zeros((PIXELS, CHANNELS), DTYPE)
        moment = tl.zeros((PIXELS, CHANNELS), DTYPE)
        for step in range(STEPS):
            p = (part * STEPS + step) * PIXELS + tl.arange(0, PIXELS)
            inside = (p < pixels)[:, None] & known[None, :]
            places = p[:, None] * pixel_stride + k[None, :] * channel_stride
            y = tl.load(y_ptr + places, mask=inside, other=0.0)
            # Read again for each split, from the cache.
            g = tl.load(
                g_ptr + p[:, None] * g_pixel + c[None, :] * g_channel, mask=inside, other=0.0
            ).to(DTYPE)
            u, z = _normalised(y, k, known, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, DTYPE)
            g = tl.where(inside & (z > 0), g, 0.0)
            total += g * z
            passed += g
            moment += g * u
        tl.store(sums_ptr + k, tl.sum(total, 0), mask=known)
        tl.store(sums_ptr + step_of_sums + k, tl.sum(passed, 0), mask=known)
        tl.store(sums_ptr + 2 * step_of_sums + k, tl.sum(moment, 0), mask=known)


@triton.jit
def _gradient(
    g_ptr, d_gap_ptr, shares_ptr, means_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
    out_ptr, channels, pixels, image_stride, channel_stride, pixel_stride, g_image, g_channel,
    g_pixel,
    RADIX: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    image = tl.program_id(2)
    y_ptr += image.to(tl.int64) * image_stride
    out_ptr += image.to(tl.int64) * image_stride
    g_ptr += image.to(tl.int64) * g_image
    known = c < channels
    inside = (p < pixels)[:, None] & known[None, :]
    g = tl.load(g_ptr + p[:, None] * g_pixel + c[None, :] * g_channel, mask=inside, other=0.0)
    g = g.to(DTYPE)
    d_gap = tl.load(d_gap_ptr + image * channels + c, mask=known, other=0.0)
    for split in tl.static_range(RADIX):
        k = c + split * channels
        places = p[:, None] * pixel_stride + k[None, :] * channel_stride
        y = tl.load(y_ptr + places, mask=inside, other=0.0)
        u, z = _normalised(y, k, known, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, DTYPE)
        share = tl.load(shares_ptr + image * RADIX * channels + k, mask=known, other=0.0)
        d_z = tl.where(z > 0, g * share[None, :] + d_gap[None, :], 0.0)
        first = tl.load(means_ptr + k, mask=known, other=0.0)
        second = tl.load(means_ptr + RADIX * channels + k, mask=known, other=0.0)
        weight = tl.load(weight_ptr + k, mask=known, other=0.0).to(DTYPE)
        scale = weight * tl.load(invstd_ptr + k, mask=known, other=0.0).to(DTYPE)
        d_y = (d_z - first[None, :] - u * second[None, :]) * scale[None, :]
        tl.store(out_ptr + places, d_y.to(out_ptr.dtype.element_ty), mask=inside)


# --- launching


class _Tile(NamedTuple):
    """What one program works on."""

    pixels_of_map: int
    pixels: int
    channels: int
    steps: int

    def grid(self, channels: int, images: int) -> tuple[int, int, int]:
        """Programs for the channels, the pixels and the images."""
        parts = triton.cdiv(self.pixels_of_map, self.pixels * self.steps)
        return triton.cdiv(channels, self.channels), parts, images


def _tile(y: Tensor, channels: int, most_steps: int = 1) -> _Tile:
    """Long along what lies side by side in memory; ``most_steps`` tiles one after the other."""
    pixels_of_map = y.shape[2] * y.shape[3]
    if y.is_contiguous():
        pixels = min(triton.next_power_of_2(pixels_of_map), 1024)
        wide = min(triton.next_power_of_2(channels), 1024 // pixels)
    else:
        wide = min(triton.next_power_of_2(channels), 64)
        pixels = 32
    return _Tile(pixels_of_map, pixels, wide, most_steps if pixels_of_map > pixels else 1)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """From image to image, channel to channel, pixel to pixel."""
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    if x.is_contiguous():
        return channels * pixels, pixels, 1
    return channels * pixels, 1, channels


def _dtype(y: Tensor) -> tl.dtype:
    return tl.float64 if y.dtype == torch.float64 else tl.float32


def pooled_sums(y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See :func:`.split_attention.pooled_sums`."""
    count, channels = y.shape[:2]
    tile = _tile(y, channels, most_steps=4)
    grid = tile.grid(channels, count)
    sums = y.new_empty((grid[1], 3, count, channels), dtype=sums_dtype(y))
    with torch.cuda.device_of(y):
        _pooled_sums[grid](
            y, mean, invstd, weight, bias, sums, channels, tile.pixels_of_map, *_strides(y),
            STEPS=tile.steps, PIXELS=tile.pixels, CHANNELS=tile.channels, DTYPE=_dtype(y),
            enable_fp_fusion=True,
        )  # fmt: skip
    return sums.sum(0)


def weighted_sum(
    y: Tensor, shares: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor,
    radix: int,
) -> Tensor:  # fmt: skip
    """See :func:`.split_attention.weighted_sum`."""
    count, channels = len(y), y.shape[1] // radix
    tile = _tile(y, channels)
    layout = torch.contiguous_format if y.is_contiguous() else torch.channels_last
    out = torch.empty(
        (count, channels, *y.shape[2:]), dtype=y.dtype, device=y.device, memory_format=layout
    )
    with torch.cuda.device_of(y):
        _weighted_sum[tile.grid(channels, count)](
            y, shares.contiguous(), mean, invstd, weight, bias, out,
            channels, tile.pixels_of_map, *_strides(y), *_strides(out),
            RADIX=radix, PIXELS=tile.pixels, CHANNELS=tile.channels, DTYPE=_dtype(y),
            enable_fp_fusion=True,
        )  # fmt: skip
    return out


def gradient_sums(
    g: Tensor, y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """See :func:`.split_attention.gradient_sums`."""
    count, channels = g.shape[:2]
    radix = y.shape[1] // channels
    tile = _tile(y, channels, most_steps=4)
    grid = tile.grid(channels, count)
    sums = y.new_empty((grid[1], 3, count, radix * channels), dtype=sums_dtype(y))
    with torch.cuda.device_of(y):
        _gradient_sums[grid](
            g, y, mean, invstd, weight, bias, sums,
            channels, tile.pixels_of_map, *_strides(y), *_strides(g),
            RADIX=radix, STEPS=tile.steps, PIXELS=tile.pixels, CHANNELS=tile.channels,
            DTYPE=_dtype(y), enable_fp_fusion=True,
        )  # fmt: skip
    return sums.sum(0)


def gradient(
    g: Tensor, d_gap: Tensor, shares: Tensor, means: Tensor, y: Tensor, mean: Tensor,
    invstd: Tensor, weight: Tensor, bias: Tensor,
) -> Tensor:  # fmt: skip
    """See :func:`.split_attention.gradient`."""
    count, channels = g.shape[:2]
    tile = _tile(y, channels)
    out = torch.empty_like(y)
    with torch.cuda.device_of(y):
        _gradient[tile.grid(channels, count)](
            g, d_gap.contiguous(), shares.contiguous(), means.contiguous(),
            y, mean, invstd, weight, bias, out,
            channels, tile.pixels_of_map, *_strides(y), *_strides(g),
            RADIX=y.shape[1] // channels, PIXELS=tile.pixels, CHANNELS=tile.channels,
            DTYPE=_dtype(y), enable_fp_fusion=True,
        )  # fmt: skip
    return out
