# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A model whose weights have changed is another network for what computes it."""

from __future__ import annotations

from torch import nn

from .._stack import times_changed

__all__ = ["state_of"]


def state_of(model: nn.Module) -> list[tuple[int, int]]:
    """Another one after weights were loaded, changed in place or moved.

    What is changed through ``tensor.data`` does not show.
    """
    return [
        (tensor.data_ptr(), times_changed(tensor))
        for tensor in (*model.parameters(), *model.buffers())
    ]
