# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Convolutions from fewer products against direct convolution in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmseg_resnest.kernels import winograd
from mmseg_resnest.kernels.winograd import (
    choose_form,
    convolve,
    transform_weight,
)


def both_variants(shape, out, groups, dilation, bias, relu, seed=0):
    """(expected in float64, ours in float32)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(shape, generator=generator)
    weight = torch.randn(out, shape[1] // groups, 3, 3, generator=generator)
    shift = torch.randn(out, generator=generator) if bias else None
    down, across = (choose_form(length, dilation) for length in shape[2:])
    made = transform_weight(weight, groups, down, across)
    ours = convolve(images, made, shift, dilation, down, across, relu)
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
    count=st.integers(1, 2),
    inner=st.integers(1, 5),
    outer=st.integers(1, 5),
    groups=st.integers(1, 3),
    size=st.tuples(st.integers(1, 21), st.integers(1, 21)),
    dilation=st.sampled_from([1, 2, 4, 6, 12]),
    bias=st.booleans(),
    relu=st.booleans(),
    chunk=st.sampled_from([1, 2**26]),
)
def test_results_are_those_of_direct_convolution(
    count, inner, outer, groups, size, dilation, bias, relu, chunk
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_CHUNK_BYTES", chunk)
        shape = (count, groups * inner, *size)
        expected, ours = both_variants(shape, groups * outer, groups, dilation, bias, relu)
    assert ours.shape == expected.shape
    assert ours.permute(0, 2, 3, 1).is_contiguous()
    error = (ours - expected).abs().max()
    assert error <= 2e-5 * max(float(expected.abs().max()), 1.0)


@pytest.mark.parametrize(("dilation", "products"), [(1, 6), (12, 6), (24, 6), (36, 3), (64, 1)])
def test_error_and_products_at_the_size_of_a_head(dilation, products):
    """64x64 maps, the atrous rates: fewer products than 3 a pixel, and an error of 1e-5."""
    assert choose_form(64, dilation).products == products
    expected, ours = both_variants((1, 96, 64, 64), 32, 1, dilation, True, False)
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_layout_of_the_input_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 6, 9, 11, generator=generator)
    form = choose_form(9, 1), choose_form(11, 1)
    weight = transform_weight(torch.randn(4, 3, 3, 3, generator=generator), 2, *form)
    last = images.contiguous(memory_format=torch.channels_last)
    plain = convolve(images, weight, None, 1, *form)
    assert torch.equal(plain, convolve(last, weight, None, 1, *form))
    wide = torch.cat([last, last], dim=3)[:, :, :, :11]
    assert torch.equal(plain, convolve(wide, weight, None, 1, *form))


def test_forms_are_those_of_the_paper():
    """Lavin and Gray's F(4, 3) has 6 products for 4 outputs; exact up to float64."""
    form = choose_form(64, 1)
    assert (form.outputs, form.products) == (4, 6)
    # Output k is the sum over j of weight j times input k + j: checked on unit vectors.
    for k, j, i in itertools.product(range(4), range(3), range(6)):
        total = sum(
            form.output[k][p] * form.weight[p][j] * form.data[p][i] for p in range(form.products)
        )
        assert total == pytest.approx(float(i == k + j), abs=1e-15)
    assert all(row[form.bias] == 1 for row in form.output)
