# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Batches and augmentations that depend on the seed and the iteration alone.

Every random number of a run comes from a stream that is seeded by what it is for: sample ``p`` of
the run (the ``p % B``-th of iteration ``p // B``, with total batch ``B``), the step of iteration
``i`` on process ``r``, the order of epoch ``e``. So there is no random state to save: a run that
resumes at iteration ``i`` draws what an uninterrupted run draws, with any number of workers, and,
but for the numbers drawn inside the model, of processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from ..registry import DATA_SAMPLERS

_SAMPLE, _STEP, _VALIDATION, _ORDER = range(4)


def _words(seed: int, *name: int) -> NDArray[np.uint32]:
    """Ten 32-bit words that seed the stream with this name."""
    return np.random.SeedSequence(seed, spawn_key=name).generate_state(10).astype(np.uint32)


class SampleIndex(int):
    """An index into a data set with the run's seed and the sample's number in the whole run."""

    seed: int
    position: int

    def __new__(cls, index: int, seed: int, position: int) -> SampleIndex:
        """Make one."""
        made = super().__new__(cls, index)
        made.seed, made.position = seed, position
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """For the queue to the workers: an int alone would lose the rest."""
        return SampleIndex, (int(self), self.seed, self.position)


def sampler_of(loader: Any) -> Any:
    """The sampler that a data loader, or its batch sampler, draws from."""
    return getattr(loader.batch_sampler, "sampler", loader.sampler)


def batch_of(loader: Any) -> int:
    """Images of a batch of a data loader; 0 where its batch sampler does not say."""
    return loader.batch_size or getattr(loader.batch_sampler, "batch_size", 0)


@DATA_SAMPLERS.register_module()
class ExactSampler(Sampler):
    """An endless sampler that starts at any position at no cost.

    Each epoch is a permutation made from the seed and the epoch's number; process ``r`` of ``W``
    takes samples ``r, r + W, r + 2 W, ...``. So iteration ``i`` with total batch ``B`` is samples
    ``i B`` to ``(i + 1) B - 1`` for any number of processes. ``seed`` None draws one for all.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.shuffle = shuffle
        self.seed = int(sync_random_seed() if seed is None else seed)
        self._start = 0

    def skip(self, num_samples: int) -> None:
        """Go to the ``num_samples``-th sample of this process, counted from the run's start."""
        if num_samples < 0:
            raise ValueError(f"num_samples is {num_samples}, must not be negative")
        self._start = num_samples

    def __iter__(self) -> Iterator[SampleIndex]:
        """Samples of this process from the position that :meth:`skip` has set, without end."""
        position = self._start * self.world_size + self.rank
        epoch, order = -1, np.arange(self.size)
        while True:
            if position // self.size != epoch:
                epoch = position // self.size
                order = self._order(epoch)
            yield SampleIndex(int(order[position % self.size]), self.seed, position)
            position += self.world_size

    def __len__(self) -> int:
        """Length of the data set."""
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the position says which epoch it is."""

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.size)
        # RandomState's numbers are the same in every version of NumPy (NEP 19); Generator's not.
        words = _words(self.seed, _ORDER, epoch)
        return np.random.RandomState(words).permutation(self.size)


class WrappedDataset(Dataset):
    """A data set around another one, whose samples, length and attributes it has."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        """Sample ``index``."""
        return self.dataset[index]

    def __len__(self) -> int:
        """Length of the data set inside."""
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        """Other attributes are the inner data set's, but not special methods, as for copying."""
        if name == "dataset" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededDataset(WrappedDataset):
    """A data set each of whose samples is made with random numbers of its own.

    ``random``, ``numpy.random`` and torch's CPU generator are seeded before a sample is made, and
    put back afterwards, so that data loading in the main process leaves the model's numbers alone.
    Plain indices are passed on as they are.
    """

    def __getitem__(self, index: int) -> Any:
        """Sample ``index``."""
        if not isinstance(index, SampleIndex):
            return self.dataset[index]
        with _seeded(_words(index.seed, _SAMPLE, index.position)):
            return self.dataset[int(index)]


def _integer(words: NDArray[np.uint32]) -> int:
    return int.from_bytes(words.tobytes(), "little")


@contextmanager
def _seeded(words: NDArray[np.uint32]) -> Iterator[None]:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_python(words)
    # Not torch.manual_seed: it would use the GPU in a worker.
    torch.default_generator.manual_seed(_integer(words[8:]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed_python(words: NDArray[np.uint32]) -> None:
    # Both are the Mersenne Twister: with the same words they would draw the same numbers.
    random.seed(_integer(words[:4]))
    np.random.seed(words[4:8])


def _seed_everything(words: NDArray[np.uint32]) -> None:
    _seed_python(words)
    torch.manual_seed(_integer(words[8:]) >> 1)  # and the GPUs'


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Seed every generator of this process for the training step of an iteration."""
    _seed_everything(_words(seed, _STEP, iteration, rank))


def seed_validation(seed: int, iteration: int, rank: int) -> None:
    """Seed every generator of this process for the validation after an iteration."""
    _seed_everything(_words(seed, _VALIDATION, iteration, rank))
