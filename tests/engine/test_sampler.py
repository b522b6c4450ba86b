# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Batches and augmentations depend on the seed, the iteration and the total batch alone."""

from __future__ import annotations

import copy
import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import Data
from torch.utils.data import DataLoader

from mmseg_resnest.engine.sampler import ExactSampler, SampleIndex, SeededDataset, seed_step


def _sampler(size: int, seed: int = 0, rank: int = 0, world: int = 1, **kw) -> ExactSampler:
    sampler = ExactSampler(range(size), seed=seed, **kw)
    sampler.rank, sampler.world_size = rank, world
    return sampler


def _take(sampler: ExactSampler, count: int, skip: int = 0) -> list[tuple[int, int]]:
    sampler.skip(skip)
    return [(int(i), i.position) for i in itertools.islice(sampler, count)]


@given(
    size=st.integers(1, 40), world=st.sampled_from([1, 2, 3, 4]), each=st.integers(1, 5),
    iteration=st.integers(0, 50), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_total_batch_is_the_same_for_any_number_of_processes(
    size: int, world: int, each: int, iteration: int, seed: int
) -> None:
    total = world * each
    alone = _take(_sampler(size, seed), total, iteration * total)
    shared = [
        pair
        for rank in range(world)
        for pair in _take(_sampler(size, seed, rank, world), each, iteration * each)
    ]
    assert sorted(shared, key=lambda pair: pair[1]) == alone


def test_every_epoch_is_another_permutation() -> None:
    epochs = [[i for i, _ in _take(_sampler(30, 1), 30, 30 * e)] for e in range(5)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert _take(_sampler(30, 2), 30) != _take(_sampler(30, 1), 30)
    in_order = _take(_sampler(3, shuffle=False), 7)
    assert [i for i, _ in in_order] == [0, 1, 2, 0, 1, 2, 0]


def test_any_position_costs_the_same() -> None:
    """A thousand million samples on: going through them would take longer than the time-out."""
    sampler = _sampler(20_000)
    far = _take(sampler, 4, 10**9)
    assert [position for _, position in far] == [10**9 + k for k in range(4)]


def test_an_index_survives_the_queue() -> None:
    index = pickle.loads(pickle.dumps(SampleIndex(7, 3, 99)))
    assert (index, index.seed, index.position) == (7, 3, 99)
    assert [10, 20, 30][SampleIndex(1, 0, 0)] == 20


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_samples_are_the_same_with_any_number_of_workers(workers: int) -> None:
    def batches(count: int, number: int) -> list[torch.Tensor]:
        loader = DataLoader(
            SeededDataset(Data()), 4, sampler=_sampler(10, 5), num_workers=number,
            collate_fn=lambda samples: torch.stack([s["inputs"] for s in samples]),
        )  # fmt: skip
        return list(itertools.islice(loader, count))

    random.seed(1)  # nothing outside has a say
    torch.manual_seed(workers)
    expected = batches(5, 0)
    assert all(map(torch.equal, batches(5, workers), expected))
    assert len({float(v) for batch in expected for v in batch[:, 0]}) == 20


def test_loading_in_the_main_process_leaves_its_numbers_alone() -> None:
    data = SeededDataset(Data())
    seed_step(0, 3, 0)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    seed_step(0, 3, 0)
    data[SampleIndex(2, 5, 77)]
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
    seed_step(0, 3, 1)
    assert random.random() != expected[0]


def test_a_wrapped_data_set_looks_like_itself() -> None:
    data = SeededDataset(Data(6))
    assert len(data) == 6
    assert data.metainfo == {"classes": ("a",)}
    assert data[3]["inputs"][3] == 3  # a plain index is passed on
    for again in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data), copy.copy(data)):
        assert isinstance(again, SeededDataset) and len(again) == 6
        with pytest.raises(AttributeError, match="elsewhere"):
            getattr(again, "elsewhere")  # noqa: B009


def test_the_generators_draw_different_numbers() -> None:
    """``random`` and ``numpy.random`` are the same generator: one seed would tie them."""
    seed_step(0, 3, 0)
    steps = random.random(), np.random.rand()
    sample = SeededDataset(Data())[SampleIndex(2, 5, 77)]["inputs"]
    assert steps[0] != steps[1] and sample[0] != sample[1] != sample[2]
