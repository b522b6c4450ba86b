# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Convolutions as matrix products beside torch's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mmseg_resnest.kernels import convolution
from mmseg_resnest.kernels.convolution import ProductConv2d, conv3x3, taps

MANY = convolution._MANY_CHANNELS


@pytest.fixture(autouse=True, params=["oneDNN", "MKL"])
def library(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test computes its products by both libraries, whoever made the processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_by_onednn", lambda: request.param == "oneDNN")
        yield request.param


def leaf(shape: tuple[int, ...], seed: int, last: bool = True) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if last and len(shape) == 4:
        made = made.contiguous(memory_format=torch.channels_last)
    return made.requires_grad_()


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    return list(torch.autograd.grad((out * weight).sum(), leaves))


@given(
    count=st.integers(1, 3),
    channels=st.integers(1, 5),
    outputs=st.integers(1, 4),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    dilation=st.integers(1, 14),
    bias=st.booleans(),
    last=st.booleans(),
)
def test_output_and_gradients_are_those_of_conv2d(
    count: int,
    channels: int,
    outputs: int,
    height: int,
    width: int,
    dilation: int,
    bias: bool,
    last: bool,
) -> None:
    leaves = [
        leaf((count, channels, height, width), 0, last),
        leaf((outputs, channels, 3, 3), 1, last),
    ]
    if bias:
        leaves.append(leaf((outputs,), 2))
    expected = F.conv2d(*leaves[:2], leaves[2] if bias else None, 1, dilation, dilation)
    out = conv3x3(*leaves[:2], leaves[2] if bias else None, dilation)
    torch.testing.assert_close(out, expected)
    for mine, theirs in zip(gradients(out, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(mine, theirs)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 22))
def test_the_taps_are_the_products_that_are_not_with_padding(
    height: int, width: int, dilation: int
) -> None:
    inside = F.conv2d(
        torch.ones(1, 1, height, width), torch.ones(1, 1, 3, 3), None, 1, dilation, dilation
    )
    products = 0
    for _, _, source, target in taps(height, width, dilation):
        assert [s.stop - s.start for s in source] == [t.stop - t.start for t in target]
        products += (source[0].stop - source[0].start) * (source[1].stop - source[1].start)
    assert products == int(inside.sum())


def test_gradients_that_nobody_asks_for_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = leaf((1, 2, 6, 6), 0), leaf((3, 2, 3, 3), 1)
    monkeypatch.setattr(convolution, "_gradient_of_weight", None)
    conv3x3(x, weight.detach(), None, 2).sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight.detach(), None, 1, 2, 2).sum(), [x])[0]
    torch.testing.assert_close(x.grad, expected)


def as_products(conv: nn.Conv2d) -> nn.Conv2d:
    return ProductConv2d.like(copy.deepcopy(conv))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(7, 5, 1),
        nn.Conv2d(7, 5, 1, bias=False),
        nn.Conv2d(MANY, 3, 3, padding=1),
        nn.Conv2d(MANY, 3, 3, padding=7, dilation=7, bias=False),
        nn.Conv2d(MANY, 3, 3, padding=12, dilation=12),
        # What is left to torch.
        nn.Conv2d(8, 6, 1, groups=2),
        nn.Conv2d(7, 5, 1, stride=2),
        nn.Conv2d(7, 5, 1, padding=1),
        nn.Conv2d(MANY, 3, 3),
        nn.Conv2d(MANY, 3, 3, padding=1, stride=2),
        nn.Conv2d(MANY, 3, 3, padding="same"),
        nn.Conv2d(MANY, 3, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(MANY, 2, 3, padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(MANY, 4, 3, padding=1, groups=2),
        nn.Conv2d(6, 3, 3, padding=1),
        nn.Conv2d(6, 3, 5, padding=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_a_module_learns_what_the_one_it_was_learns(conv: nn.Conv2d, training: bool) -> None:
    conv = conv.double()
    other = as_products(conv)
    assert other.state_dict().keys() == conv.state_dict().keys()
    x = leaf((2, conv.in_channels, 9, 10), 0)
    with torch.set_grad_enabled(training):
        out, expected = other(x), conv(x)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    if training:
        mine = gradients(out, [x, *other.parameters()])
        theirs = gradients(expected, [x, *conv.parameters()])
        for one, two in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, two)


def test_what_is_for_torch_stays_with_torch(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    wide = as_products(nn.Conv2d(MANY, 2, 3, padding=1))
    point = as_products(nn.Conv2d(4, 2, 1))
    x, few = torch.randn(1, MANY, 4, 4), torch.randn(1, 4, 4, 4)
    assert "Conv3x3" in wide(x).grad_fn.name()
    assert ("Conv" in point(few).grad_fn.name()) == (library == "oneDNN")
    with torch.autocast("cpu", torch.bfloat16):
        assert "Conv3x3" not in wide(x).grad_fn.name()
        assert wide(x).dtype == point(few).dtype == torch.bfloat16
    assert "Conv3x3" not in wide.bfloat16()(x.bfloat16()).grad_fn.name()
    monkeypatch.setattr(convolution, "conv3x3", None)
    monkeypatch.setattr(F, "linear", None)
    with torch.no_grad():  # validation
        wide.float()(x)
        point(few)
    assert point(few[0].detach().requires_grad_()).shape == (2, 4, 4)  # one image, no batch


def test_the_products_of_float32_are_equal_in_both_libraries() -> None:
    x = torch.randn(2, MANY, 11, 9).contiguous(memory_format=torch.channels_last)
    for dilation in (1, 7):
        weight = torch.randn(6, MANY, 3, 3)
        leaves = [x.clone().requires_grad_(), weight.requires_grad_()]
        expected = F.conv2d(*leaves, None, 1, dilation, dilation)
        out = conv3x3(*leaves, None, dilation)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)
        for mine, theirs in zip(gradients(out, leaves), gradients(expected, leaves), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(5, 3, 1),
        nn.Conv2d(MANY, 3, 3, padding=1),
        nn.Conv2d(MANY, 3, 3, padding=4, dilation=4),  # few of its products are on the map
    ],
    ids=str,
)
def test_what_follows_may_be_anything_that_may_follow_a_convolution(conv: nn.Conv2d) -> None:
    other = as_products(conv)
    x = torch.randn(2, conv.in_channels, 6, 6).contiguous(memory_format=torch.channels_last)
    grads = []
    for module in (conv, other):
        module.zero_grad()
        torch.relu_(module(x)).square().sum().backward()  # an activation in place
        grads.append([parameter.grad.clone() for parameter in module.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-3)
    assert other(x[:0]).shape == conv(x[:0]).shape
    other(x[:0]).sum().backward()
    for traced in (
        torch.jit.trace(other, x),
        torch.fx.symbolic_trace(nn.Sequential(other)),
    ):
        torch.testing.assert_close(traced(x), conv(x), rtol=1e-4, atol=1e-4)
