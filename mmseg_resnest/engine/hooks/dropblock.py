# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The schedule of DropBlock's probability."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...models import DropBlock2d
from ...registry import HOOKS
from ..checkpoint import bare_model


@HOOKS.register_module()
class DropBlockHook(Hook):
    """Raises the probability of every :class:`.DropBlock2d` linearly from 0 over the training.

    At iteration i of N it is p * i / N, where p is the one that the model was built with
    (``dropblock_prob``), as in the training of the published ImageNet models. It depends on the
    iteration alone, so that a resumed run continues it.
    """

    def before_train(self, runner: Runner) -> None:
        """Find the layers and the probabilities at the end of the run."""
        layers = [m for m in bare_model(runner.model).modules() if isinstance(m, DropBlock2d)]
        self._last = [(layer, layer.drop_prob) for layer in layers]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the probability of this iteration."""
        for layer, last in self._last:
            layer.drop_prob = last * runner.iter / runner.max_iters

    def after_train(self, runner: Runner) -> None:
        """Give the layers back what they were built with."""
        for layer, last in self._last:
            layer.drop_prob = last
