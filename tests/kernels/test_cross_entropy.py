# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The cross entropy of every pixel beside torch's own."""

from __future__ import annotations

import platform

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmseg_resnest.io.memory import forget_peak_memory, peak_memory
from mmseg_resnest.kernels import resampling
from mmseg_resnest.kernels.cross_entropy import pixel_cross_entropy
from mmseg_resnest.models.losses import CrossEntropyLoss


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 3, 4), (2, 1, 1, 1), (1, 4, 0, 3)])
def test_losses_and_gradient_are_those_of_torch(
    shape: tuple[int, ...], weighted: bool, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(resampling._TILE_BYTES, "cpu", 1000)  # several pieces, not of one height
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(shape, generator=generator, dtype=torch.float64)
    if last and scores.dim() == 4:
        scores = scores.contiguous(memory_format=torch.channels_last)
    places = (shape[0], *shape[2:])
    labels = torch.randint(0, shape[1], places, generator=generator)
    labels[torch.rand(places, generator=generator) < 0.3] = 255
    weights = torch.rand(shape[1], generator=generator).double() if weighted else None
    above = torch.rand(places, generator=generator, dtype=torch.float64)

    def learn(loss: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
        return loss.detach(), torch.autograd.grad(loss, leaf, above)[0]

    leaf = scores.clone().requires_grad_()
    plain = F.cross_entropy(leaf, labels, weights, reduction="none", ignore_index=255)
    expected = learn(plain, leaf)
    made = learn(pixel_cross_entropy(leaf, labels, weights, 255), leaf)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_a_step_needs_one_tensor_of_the_scores_size() -> None:
    """torch's own takes three beside the scores: log-softmax, its gradient and the scores'."""
    scores = torch.randn(1, 64, 512, 512).requires_grad_()  # 64 MiB
    labels = torch.randint(0, 64, (1, 512, 512))
    forget_peak_memory()
    before = peak_memory()
    CrossEntropyLoss()(scores, labels).backward()
    assert peak_memory() - before < 1.6 * 2**26
