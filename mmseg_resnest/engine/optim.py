# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Mixed precision where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper

from mmseg_resnest.registry import OPTIM_WRAPPERS

__all__ = ["BFloat16OptimWrapper"]


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
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
