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
    """Other batches, square images, views of larger ones and small ones compile nothing more."""
    backend, said, module = Backend(), [], pool().eval()
    compiled = Compiled(doubled, said.append, batches=True, backend=backend)
    sizes = [(2, 16, 16), (1, 16, 16), (5, 16, 16), (2, 200, 200), (1, 310, 170), (3, 200, 200)]
    for count, height, width in [*sizes, (1, 16, 17), (2, 1, 1), (1, 1, 30000), (1, 177, 310)]:
        images = torch.randn(count, 3, height + 1, width + 1)[:, :, 1:, 1:]
        found = compiled(module, images)
        torch.testing.assert_close(found, doubled(module, images))
        assert len(found) == count
    assert compiled.failed is None
    assert len(said) == 2  # the first size, and any other
    assert len(backend.shapes) == 2
    other = copy.deepcopy(module)
    other[0].weight.data.zero_()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(copy.deepcopy(compiled)(other, images), doubled(other, images))


@torch.no_grad()
def test_any_size_is_one_bucket() -> None:
    backend, said, module = Backend(), [], pool().eval()
    compiled = Compiled(doubled, said.append, batches=True, backend=backend, dynamic=True)
    for count, height, width in [(1, 200, 200), (1, 310, 170), (3, 200, 200), (1, 7, 9)]:
        images = torch.randn(count, 3, height, width)
        torch.testing.assert_close(compiled(module, images), doubled(module, images))
    assert len(said) == len(backend.shapes) == 1


def test_code_that_fails_later_is_left_for_plain_torch() -> None:
    """A batch of one has code of its own in training."""

    def broken(graph: Any, inputs: list[Any]) -> Any:
        made.append(0)
        if len(made) > 2:
            raise RuntimeError("no compiler any more")
        return graph.forward

    made: list[object] = []
    said: list[str] = []
    compiled, module = Compiled(doubled, said.append, backend=broken), pool()
    for shape in [(2, 3, 16, 16), (2, 3, 20, 24), (1, 3, 20, 24), (2, 3, 16, 16)]:
        images = torch.randn(shape)
        assert torch.equal(compiled(module, images), doubled(module, images))
    assert len(made) == 3
    assert len([line for line in said if "failed" in line]) == 1


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


def test_a_compiler_that_is_missing_is_named() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in (None, 'g++')")

    said: list[str] = []
    compiled, images = Compiled(doubled, said.append, backend=broken), torch.randn(2, 3, 16, 16)
    assert torch.equal(compiled(pool(), images), doubled(pool(), images))
    assert "apt install g++" in said[1]
