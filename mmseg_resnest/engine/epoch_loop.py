# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The training loop of configs that count epochs."""

from __future__ import annotations

from typing import Any

from mmengine.runner import EpochBasedTrainLoop as MMEngineLoop

from ..registry import LOOPS
from .loop import StoppableLoop
from .preemption import stop_signal


@LOOPS.register_module()
class EpochBasedTrainLoop(StoppableLoop, MMEngineLoop):
    """MMEngine's loop of this name, with its arguments, which stops when it is asked to.

    Once asked to stop, all processes stop after the same step, save, and raise ``Preempted``; with
    gradient accumulation after the update. A run that is resumed within an epoch goes on with the
    rest of it, as far as the sampler gives the same order: its first batches are loaded and
    dropped. MMEngine's trains on the whole epoch again.
    """

    validation_pending = False

    def run_epoch(self) -> None:
        """One epoch, or the rest of one."""
        runner, length = self.runner, len(self.dataloader)
        done = min(max(0, self._iter - self._epoch * length), length)
        runner.call_hook("before_train_epoch")
        runner.model.train()
        for index, batch in enumerate(self.dataloader if done < length else ()):
            if index >= done:
                self.run_iter(index, batch)
        runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """One step; ends the run if it was asked to stop."""
        super().run_iter(idx, data_batch)
        runner = self.runner
        self.stopping = self._any_process(self.stopping or stop_signal() is not None)
        if self.stopping and runner.optim_wrapper.should_update():
            runner.call_hook("save_before_leaving")
            self._leave()
