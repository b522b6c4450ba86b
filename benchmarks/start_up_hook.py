# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Says when the first iteration of a run is done; part of the comparison in start_up.py."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class EndAfterFirstIteration(Hook):
    """Prints a line after the first iteration; whoever reads it ends the process."""

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Prints the line."""
        print("first iteration done", flush=True)
