# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Says when the first iteration of a run is done; part of the comparison in start_up.py."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class EndAfterFirstIteration(Hook):
    """Prints a line with the loss after the first iteration; whoever reads it ends the process."""

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Prints the line."""
        print(f"first iteration done, loss {float(outputs['loss']):.8f}", flush=True)
