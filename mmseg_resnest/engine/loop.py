# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The training loop: every iteration the same whenever the run was started."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import EMAHook
from mmengine.runner import IterBasedTrainLoop as MMEngineLoop
from mmengine.runner.utils import calc_dynamic_intervals
from torch import nn

from .._stack import swap_averaged_weights, waiting_worker
from ..errors import UserError
from ..registry import LOOPS
from .preemption import Preempted, stop_signal
from .sampler import ExactSampler, batch_of, sampler_of, seed_step, seed_validation
from .watch import doing


def validation_steps(
    last: int, interval: int, begin: int = 1, dynamic: Sequence[tuple[int, int]] | None = None
) -> list[int]:
    """After which of ``last`` steps, iterations or epochs, MMEngine's training loops validate.

    The other arguments are their options ``val_interval``, ``val_begin``, ``dynamic_intervals``.
    """
    milestones, intervals = calc_dynamic_intervals(interval, dynamic)
    ends = [*(milestone - 1 for milestone in milestones[1:]), last + 1]
    due, start = {last}, 1
    for every, end in zip(intervals, ends, strict=True):
        due.update(range(math.ceil(start / every) * every, min(end, last + 1), every))
        start = max(start, end)
    return sorted(step for step in due if step >= begin)


class _StopInValidation(Exception):
    """The run was asked to stop while it validated."""


class StoppableLoop:
    """What training loops share that stop after a step once a signal has asked any process to."""

    runner: Any
    _iter: int
    stopping = False

    def _any_process(self, flag: bool) -> bool:
        value = torch.tensor(float(flag))
        all_reduce(value, "max")
        return bool(value)

    def _leave(self) -> None:
        """Wait for the checkpoint and end the run."""
        unsaved = self.runner.finish_saving()
        lost = [one.text for one in unsaved if one.checkpoint]
        name = stop_signal() or "another process"
        if lost:
            raise Preempted(f"stopped by {name} at iteration {self._iter:,}, but {'; '.join(lost)}")
        saved = f"saved at iteration {self._iter:,}"
        then = "the same command with --resume continues from it"
        texts = [f"stopped by {name}", saved, then, *(one.text for one in unsaved)]
        raise Preempted("; ".join(texts))


@LOOPS.register_module()
class IterBasedTrainLoop(StoppableLoop, MMEngineLoop):
    """MMEngine's loop of this name, with its arguments, which resumes exactly and at once.

    Every step is seeded by its number. With :class:`.ExactSampler` the data start at the iteration
    resumed from; other samplers are skipped through, as in MMEngine. A validation that the
    checkpoint lacks is done first. Logged losses are the mean over the processes. Once asked to
    stop, all processes stop after the same step, or in a validation, save, and raise ``Preempted``.
    With gradient accumulation they go on until the update: gradients are not saved.
    """

    _iterator: Any = None
    validation_pending = False

    def run(self) -> nn.Module:
        """Train."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        batches = self._batches()
        if self._iter > 0:
            self._decide_current_val_interval()
        if self.validation_pending and self.validation_due(self._iter):
            self._validate()
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            self.run_iter(self._next(batches))
            self._decide_current_val_interval()
            if self.stopping and runner.optim_wrapper.should_update():
                self._leave()
            if self.validation_due(self._iter):
                self._validate()
                # The loop may end here: the run is then complete, and says so.
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def run_iter(self, data_batch: Any) -> None:
        """One step."""
        runner = self.runner
        doing(f"at iteration {self._iter}")
        seed_step(runner.seed, self._iter, runner.rank)
        runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        outputs = runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)
        outputs = self._agree(outputs)
        runner.call_hook(
            "after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1

    def validation_due(self, iteration: int) -> bool:
        """Whether there is a validation after this many iterations."""
        step = bisect.bisect(self.dynamic_milestones, iteration + 1)
        interval = self.dynamic_intervals[step - 1]
        return (
            self.runner.val_loop is not None
            and iteration >= self.val_begin
            and (iteration % interval == 0 or iteration == self._max_iters)
        )

    def check_stop_in_validation(self) -> None:
        """End a validation that a signal has interrupted; called after each of its steps."""
        if self._validation_can_stop and self._any_process(stop_signal() is not None):
            raise _StopInValidation

    def _batches(self) -> Iterator[Any]:
        """The batches from this iteration on."""
        if (sampler := self._exact_sampler()) is not None:
            sampler.seed = self.runner.seed  # a resumed run has that of its checkpoint
            self._iterator = iter(self.dataloader)
            return self._iterator
        if self._iter > 0 and not getattr(self, "fast_forward_on_resume", False):
            if hasattr(self.dataloader_iterator, "skip_iter"):
                self.dataloader_iterator.skip_iter(self._iter)
            else:
                for _ in range(self._iter):
                    next(self.dataloader_iterator)
        return self.dataloader_iterator

    def _exact_sampler(self) -> ExactSampler | None:
        """The loader's sampler, set to this iteration; None if it is of another kind."""
        sampler = sampler_of(self.dataloader)
        if not isinstance(sampler, ExactSampler):
            return None
        sampler.skip(self._iter * batch_of(self.dataloader))
        return sampler

    def _next(self, batches: Iterator[Any]) -> Any:
        doing(f"loading the batch of iteration {self._iter}")
        try:
            return next(batches)
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error):
                raise
            raise self._hung_worker(batches) from error

    def _hung_worker(self, batches: Any) -> UserError:
        """Which worker has not delivered its batch in time, and what it was to read."""
        loader = self.dataloader
        number = who = files = ""
        if task := waiting_worker(batches):
            number, who = f" {task[0]}", f" (process {task[1].pid})"
        if (sampler := self._exact_sampler()) is not None:
            indices = map(int, itertools.islice(sampler, batch_of(loader)))
            paths = [loader.dataset.get_data_info(index)["img_path"] for index in indices]
            files = f", to read from {', '.join(map(str, paths))}"
        return UserError(
            "data-loading",
            f"data loading worker{number}",
            f"hangs{who}: no batch for iteration {self._iter} within {loader.timeout:g} s{files}; "
            "check those files and their disk, or raise train_dataloader.timeout",
        )

    def _agree(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Mean of the losses over the processes; and whether any of them was asked to stop."""
        stop = stop_signal() is not None
        if get_world_size() == 1:
            self.stopping = self.stopping or stop
            return outputs
        device = next(self.runner.model.parameters()).device
        mine = [torch.as_tensor(value, device=device).detach() for value in outputs.values()]
        flag = torch.tensor(float(stop), device=device)
        values = torch.stack([*(value.double().mean() for value in mine), flag.double()])
        all_reduce(values, "mean")
        *means, asked = values.tolist()
        self.stopping = self.stopping or asked > 0
        return dict(zip(outputs, means, strict=True))

    def _validate(self) -> None:
        runner = self.runner
        # Processes that have different numbers of batches cannot agree on one to stop after.
        lengths = all_gather_object(len(runner.val_dataloader))
        self._validation_can_stop = len(set(lengths)) == 1 and runner.optim_wrapper.should_update()
        doing(f"validating after iteration {self._iter}")
        seed_validation(runner.seed, self._iter, runner.rank)
        self.validation_pending = True
        try:
            runner.val_loop.run()
        except _StopInValidation:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # it had put the averaged weights into the model
                    swap_averaged_weights(hook)
            self.stopping = True
            runner.call_hook("save_before_leaving")
            self._leave()
        self.validation_pending = False
        if self._iter < self._max_iters and self._any_process(stop_signal() is not None):
            self.stopping = True
            if runner.optim_wrapper.should_update():
                runner.call_hook("save_before_leaving")
                self._leave()
