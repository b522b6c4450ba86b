# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The encoding layer's arithmetic; test_published_models.py compares the heads."""

from __future__ import annotations

import torch
from mmseg.models.utils import Encoding

from mmseg_resnest.models.heads import ResidualEncoding


def test_encoding_layer_equals_the_stacks_with_gradients():
    torch.manual_seed(0)
    stock, ours = Encoding(32, 8), ResidualEncoding(32, 8)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(2, 32, 6, 5)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, actual = stock(a), ours(b)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)
    for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)


def test_encoding_layer_is_exact_enough_under_autocast():
    layer = ResidualEncoding(32, 8)
    x = torch.randn(2, 32, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, layer(x))
