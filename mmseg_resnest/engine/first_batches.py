# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The first batches of a run, and how long its epochs are, before the run."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from .._stack import stop_workers
from ..datasets import build_dataset, image_sizes, mixed_batch
from ..errors import UserError
from .failing_keys import key_of_step
from .failing_parts import failing, loading_error
from .launch import Machine
from .preemption import signals_wait
from .runner import Runner
from .sampler import ExactSampler, WrappedDataset, sampler_of

#: Validation images whose sizes are compared.
_MOST_LOOKED_AT = 2000


class FirstBatches:
    """Loads batches as a run will, one by one; this process need not have met the others.

    Raises:
        UserError: A sample cannot be made, or the loop and the loader do not agree. Workers that
            hang or die raise what they raise in a run.
    """

    def __init__(self, cfg: Config, machine: Machine, seed: int) -> None:
        self.cfg, self.machine, self.seed = cfg, machine, seed

    def loader(self, name: str) -> DataLoader | None:
        """The data loader; None where a batch of it cannot be had alone."""
        loader = self.cfg[name]
        dataset = loader.get("dataset")
        if isinstance(dataset, Mapping):
            node = copy.deepcopy(dataset)
            with failing(f"{name}.dataset", "it cannot be built", node):
                dataset = build_dataset(node, keep=True)
        if isinstance(dataset, IterableDataset):
            return None
        with failing(name, "it cannot be built", loader):
            tried = {**loader, "dataset": _Tried(dataset, f"{name}.dataset", loader.dataset)}
            made = Runner.build_dataloader(tried, seed=self.seed)
        return None if made.batch_sampler is None else made

    def batches(self, loader: DataLoader) -> Iterator[list[int]]:
        """The indices of this process's batches.

        Samplers take a process for the only one before it has met the others. All that the stack
        has take every ``world_size``-th sample.
        """
        batches: Any = loader.batch_sampler
        if type(batches) is not BatchSampler:
            yield from batches
            return
        mine = itertools.islice(batches.sampler, self.machine.rank, None, self.machine.world_size)
        size = loader.batch_size or 1
        yield list(itertools.islice(mine, size)) or [0]
        while batch := list(itertools.islice(mine, size)):
            yield batch

    def validated(self, loader: DataLoader) -> Sequence[int]:
        """The first batch, or the first one whose images differ in size."""
        batches = self.batches(loader)
        first = next(batches)
        if len(first) == 1:
            return first
        batches = itertools.islice(itertools.chain([first], batches), _MOST_LOOKED_AT // len(first))
        return mixed_batch(batches, image_sizes(loader.dataset)) or first

    def load(self, name: str, loader: DataLoader, indices: Sequence[int]) -> Any:
        """One batch, by a worker where the run has workers: it may hang, or end its process."""
        workers = min(1, loader.num_workers)
        one = DataLoader(
            loader.dataset,
            batch_sampler=[list(indices)],
            collate_fn=functools.partial(_collate, loader.collate_fn, name),
            num_workers=workers,
            persistent_workers=bool(workers),
            worker_init_fn=loader.worker_init_fn,
            timeout=loader.timeout,
        )
        try:
            with signals_wait():
                batches = iter(one)
            batch = next(batches)
        finally:
            stop_workers(one)
        if isinstance(batch, UserError):
            raise batch
        return batch

    def check_lengths(self, loader: Any) -> None:
        """Whether the loop and the loader agree on how long the run and its epochs are."""
        if "max_epochs" in self.cfg.train_cfg:
            self.check_end(loader, "train_dataloader", "an epoch")
        batches = loader.batch_sampler
        if type(batches) is not BatchSampler or not batches.drop_last or self._endless(loader):
            return
        count = len(batches.sampler) // self.machine.world_size  # type: ignore[arg-type]
        if count < batches.batch_size:
            message = f"is {batches.batch_size} for a process, which gets {count:,} images: no "
            message += "batch is complete, and drop_last leaves out the others"
            raise UserError("config-conflict", "config key train_dataloader.batch_size", message)

    def check_end(self, loader: Any, name: str, what: str) -> None:
        """Whether an epoch or a validation over a loader, ``what``, ends."""
        if self._endless(loader):
            kind = type(loader.sampler).__name__
            message = f"{kind} has no end, so that {what} would have none; use DefaultSampler"
            raise UserError("config-conflict", f"config key {name}.sampler.type", message)

    @staticmethod
    def _endless(loader: Any) -> bool:
        return isinstance(sampler_of(loader), ExactSampler | InfiniteSampler)

    def leaves_one(self, loader: Any) -> bool:
        """Whether a later batch of the run is a single image of this process, and others not."""
        batches = loader.batch_sampler
        if type(batches) is not BatchSampler or batches.drop_last or batches.batch_size < 2:
            return False
        if self._endless(loader):
            return False
        length: int = len(batches.sampler)  # type: ignore[arg-type]
        count = -(-length // self.machine.world_size)
        steps = self.cfg.train_cfg.get("max_iters", count)
        return count % batches.batch_size == 1 and steps * batches.batch_size >= count > 1


class _Tried(WrappedDataset):
    """A data set that returns what fails in place of a sample: errors lose much on their way."""

    def __init__(self, dataset: Any, key: str, node: Any) -> None:
        super().__init__(dataset)
        self._key, self._node = key, node

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            return loading_error(error, *key_of_step(self._key, self._node, self.dataset, error))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tried:
        return self  # MMEngine copies what loaders are built from


def _collate(function: Any, name: str, samples: Sequence[Any]) -> Any:
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    try:
        return function(samples)
    except Exception as error:
        return loading_error(error, f"{name}.dataset")
