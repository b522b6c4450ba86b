# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Batch norm's statistics as a mean over many batches, in place of the moving average."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..._stack import BatchNorm
from ...errors import check_value
from ...registry import HOOKS
from ..checkpoint import bare_model
from ..config.numbers import is_whole
from ..sampler import ExactSampler, seed_validation


@HOOKS.register_module()
class PreciseBNHook(Hook):
    """Sets running means and variances to their mean over ``num_iters`` training batches.

    It does so before each checkpoint and evaluation, with the weights as they are then, on the
    batches that training sees next; frozen norms keep theirs. As detectron2 does ("precise BN",
    fvcore's ``update_bn_stats``): after SGD has changed the weights for long, the moving average is
    that of other weights. Training goes on with what was set, and is the same after a resume.

    Args:
        interval: Iterations between two updates; None: those between two evaluations. The last
            iteration of the run always has one.
        num_iters: Batches, each of the training loader's size on every process.
    """

    priority = "LOW"  # after the optimizer's step, before the checkpoint

    def __init__(self, interval: int | None = None, num_iters: int = 200) -> None:
        for name, value in (("interval", interval), ("num_iters", num_iters)):
            good = is_whole(value, 1) or (value is None and name == "interval")
            key = f"custom_hooks.PreciseBNHook.{name}"
            check_value(key, value, "a whole number from 1 on", good)
        self.interval, self.num_iters = interval, num_iters

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Update where it is due, and after the last iteration."""
        interval = self.interval or runner.val_interval
        if self.every_n_train_iters(runner, interval) or self.is_last_train_iter(runner):
            self.update(runner)

    @torch.no_grad()
    def update(self, runner: Runner) -> None:
        """Set the statistics of the runner's model."""
        model: Any = bare_model(runner.model)
        norms: list[Any] = [
            module
            for module in model.modules()
            if isinstance(module, BatchNorm) and module.training and module.track_running_stats
        ]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        sums = [(torch.zeros_like(n.running_mean), torch.zeros_like(n.running_var)) for n in norms]
        counted = [n.num_batches_tracked.clone() for n in norms]
        batches = iter(self._loader(runner))
        seed_validation(runner.seed, runner.iter + 1, runner.rank)
        for norm in norms:
            norm.momentum = 1.0  # the running statistics are then those of the last batch
        try:
            for batch in itertools.islice(batches, self.num_iters):
                runner.model(**model.data_preprocessor(batch, True), mode="loss")
                for norm, (mean, variance) in zip(norms, sums, strict=True):
                    mean += norm.running_mean / self.num_iters
                    variance += norm.running_var / self.num_iters
        finally:
            del batches  # and its workers
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        for norm, number, (mean, variance) in zip(norms, counted, sums, strict=True):
            for value in (mean, variance):  # plain batch norm has others on each process
                all_reduce(value, "mean")
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.num_batches_tracked.copy_(number)

    def _loader(self, runner: Runner) -> DataLoader:
        """The batches that training sees after this iteration; its own are left as they are."""
        loader = runner.train_dataloader
        draw: dict[str, Any] = {"batch_sampler": copy.copy(loader.batch_sampler)}
        if loader.batch_size is not None:
            draw = {"batch_size": loader.batch_size, "sampler": copy.copy(loader.sampler)}
            if isinstance(draw["sampler"], ExactSampler):
                draw["sampler"].skip((runner.iter + 1) * loader.batch_size)
        alike = ("num_workers", "collate_fn", "worker_init_fn", "pin_memory", "timeout")
        return DataLoader(loader.dataset, **draw, **{key: getattr(loader, key) for key in alike})
