# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Convolutions from fewer products against direct convolution in float64."""

import itertools
import platform

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_resnest.io.memory import forget_peak_memory, peak_memory
from mmseg_resnest.kernels import winograd
from mmseg_resnest.kernels.winograd import convolve, saved


def both_variants(shape, out, groups, dilation, bias, relu, seed=0):
    """(expected in float64, ours in float32)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(shape, generator=generator)
    weight = torch.randn(out, shape[1] // groups, 3, 3, generator=generator)
    shift = torch.randn(out, generator=generator) if bias else None
    ours = convolve(images, weight, shift, dilation, groups, relu)
    expected = F.conv2d(
        images.double(),
        weight.double(),
        None if shift is None else shift.double(),
        1,
        dilation,
        dilation,
        groups,
    )
    return expected.relu() if relu else expected, ours


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 3),
    inner=st.integers(1, 5),
    outer=st.integers(1, 5),
    groups=st.integers(1, 3),
    size=st.tuples(st.integers(1, 21), st.integers(1, 21)),
    dilation=st.sampled_from([1, 2, 4, 6, 12]),
    bias=st.booleans(),
    relu=st.booleans(),
    chunk=st.sampled_from([1, 2**16, 2**25]),
    channels=st.sampled_from([2, 256]),
)
def test_results_are_those_of_direct_convolution(
    count, inner, outer, groups, size, dilation, bias, relu, chunk, channels
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_CHUNK_BYTES", chunk)
        patch.setattr(winograd, "_CHANNELS", channels)
        shape = (count, groups * inner, *size)
        expected, ours = both_variants(shape, groups * outer, groups, dilation, bias, relu)
    assert ours.shape == expected.shape
    assert ours.permute(0, 2, 3, 1).is_contiguous()
    error = (ours - expected).abs().max()
    assert error <= 2e-5 * max(float(expected.abs().max()), 1.0)


@pytest.mark.parametrize(("dilation", "times"), [(1, 3.9), (2, 3.8), (4, 3.7), (12, 1.4)])
def test_error_and_products_at_the_size_of_a_head(dilation, times):
    """64x64 maps: how many products direct convolution takes for one, and an error of 1e-5."""
    assert saved(64, 64, dilation) == pytest.approx(times, abs=0.05)
    expected, ours = both_variants((1, 96, 64, 64), 32, 1, dilation, True, False)
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
@pytest.mark.parametrize("count", [1, 4])
def test_memory_is_that_of_the_output_and_a_bounded_rest(count):
    """DeepLabV3's widest convolution: kept transformed weights would be 180 MiB."""
    images = torch.ones(count, 2560, 64, 64).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(512, 2560, 3, 3).contiguous(memory_format=torch.channels_last)
    convolve(images[:, :, :8, :8], weight, None, 1)  # loads what the products need
    forget_peak_memory()
    before = peak_memory()
    out = convolve(images, weight, None, 1)
    assert peak_memory() - before < 4 * out.numel() + 5 * winograd._CHUNK_BYTES


def test_layout_of_the_input_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 6, 9, 11, generator=generator)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    last = images.contiguous(memory_format=torch.channels_last)
    plain = convolve(images, weight, None, 1, 2)
    assert torch.equal(plain, convolve(last, weight, None, 1, 2))
    wide = torch.cat([last, last], dim=3)[:, :, :, :11]
    assert torch.equal(plain, convolve(wide, weight, None, 1, 2))


def test_transforms_are_those_of_the_paper():
    """Lavin and Gray's F(4, 3) has 6 products for 4 outputs; exact up to float64."""
    # Output k is the sum over j of weight j times input k + j: checked on unit vectors.
    for k, j, i in itertools.product(range(4), range(3), range(6)):
        total = sum(
            winograd._OUTPUT[k][p] * winograd._WEIGHT[p][j] * winograd._DATA[p][i] for p in range(6)
        )
        assert total == pytest.approx(float(i == k + j), abs=1e-15)
    assert all(row[1] == 1 for row in winograd._OUTPUT)
