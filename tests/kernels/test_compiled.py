# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""``torch.compile`` with few buckets of sizes, and plain torch where it fails."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmseg_resnest.kernels.compiled import Compiled


def doubled(module: nn.Module, images: Tensor) -> Tensor:
    return 2 * module(images)


def pool() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Backend:
    """Counts what is compiled."""

    def __init__(self) -> None:
        self.shapes: list[Any] = []

    def __call__(self, graph: Any, inputs: list[Any]) -> Any:
        self.shapes.append([tuple(one.shape) for one in inputs if hasattr(one, "shape")])
        return graph.forward


@torch.no_grad()
def test_sizes_share_code() -> None:
    backend, said, module = Backend(), [], pool().eval()
    compiled = Compiled(doubled, said.append, batches=True, backend=backend)
    sizes = [(2, 16, 16), (1, 16, 16), (5, 16, 16), (2, 20, 24), (1, 31, 17), (3, 20, 20)]
    for count, height, width in sizes:
        images = torch.randn(count, 3, height, width)
        found = compiled(module, images)
        torch.testing.assert_close(found, doubled(module, images))
        assert len(found) == count
    assert compiled.failed is None
    assert len(said) == 2  # the first size, and any other
    assert len(backend.shapes) <= 3  # a batch of one may have code of its own
    other = copy.deepcopy(module)
    other[0].weight.data.zero_()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(copy.deepcopy(compiled)(other, images), doubled(other, images))


def test_a_compiler_that_fails_is_said_once() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here\nand more")

    said: list[str] = []
    compiled = Compiled(doubled, said.append, backend=broken)
    module, images = pool(), torch.randn(2, 3, 16, 16)
    for _ in range(2):
        assert torch.equal(compiled(module, images), doubled(module, images))
    assert compiled.failed is not None
    assert [line for line in said if "failed" in line] == said[1:]
    assert len(said) == 2
    assert "\n" not in said[1]


def test_a_fault_of_the_function_is_its_own() -> None:
    compiled = Compiled(doubled, lambda line: None, backend="eager")
    with pytest.raises(RuntimeError, match="channels"):
        compiled(pool(), torch.randn(2, 5, 16, 16))
