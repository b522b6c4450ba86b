# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Layers of PyTorch whose sizes an exporter would fix compute the same on any size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mmseg_resnest.runtimes.free_sizes import keep_sizes_free


class Crossing(nn.Module):
    """Attention of one sequence to a part of it."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        few = x[:, :3] if self.attention.batch_first else x[:3]
        mixed: Tensor = self.attention(query=x, key=few, value=few)[0]
        return mixed


LAYERS = {
    "sequence first": lambda: Crossing(),
    "batch first, without biases": lambda: Crossing(batch_first=True, bias=False),
    "encoder": lambda: nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_traced_attention_takes_sequences_of_any_length(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().eval().requires_grad_(False)
    free = copy.deepcopy(layer)
    keep_sizes_free(free)
    traced = torch.jit.trace(free, torch.randn(5, 7, 16), check_trace=False)
    for shape in ((5, 7, 16), (4, 9, 16)):
        x = torch.randn(shape)
        torch.testing.assert_close(traced(x), layer(x), rtol=1e-5, atol=1e-6)
