# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Optimizer wrappers: MMEngine's with a guard before each update, and mixed precision on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from mmengine.optim import AmpOptimWrapper as MMEngineAmpOptimWrapper
from mmengine.optim import OptimWrapper as MMEngineOptimWrapper

from ..registry import OPTIM_WRAPPERS


class Guard(Protocol):
    """Decides before each update whether it is made."""

    def see_loss(self, loss: torch.Tensor) -> None:
        """Called with a loss before its backward pass."""

    def allows(self, wrapper: MMEngineOptimWrapper) -> bool:
        """Whether the gradients may reach the weights; called on every process."""

    def updated(self) -> None:
        """Called after an update."""


class GuardedOptimWrapper(MMEngineOptimWrapper):
    """An optimizer wrapper whose updates a :class:`Guard` may leave out."""

    guard: Guard | None = None

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """As in MMEngine; the guard sees the loss first."""
        if self.guard is not None:
            self.guard.see_loss(loss)
        super().backward(loss, **kwargs)

    def step(self, **kwargs: Any) -> None:
        """As in MMEngine, if the guard allows it."""
        if self.guard is None:
            super().step(**kwargs)
        elif self.guard.allows(self):
            super().step(**kwargs)
            self.guard.updated()


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(GuardedOptimWrapper):
    """MMEngine's wrapper of this name, with a guard."""


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(GuardedOptimWrapper, MMEngineAmpOptimWrapper):
    """MMEngine's wrapper of this name, with a guard."""


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(GuardedOptimWrapper):
    """Runs the forward pass in bfloat16 where torch deems it safe, on any device.

    bfloat16 has float32's range, so there is no loss scaling; MMEngine's ``AmpOptimWrapper``
    refuses to work without a GPU.
    """

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        """Gradient accumulation as in ``OptimWrapper``, under ``torch.autocast``."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
