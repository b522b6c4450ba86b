# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Precise batch norm: the mean over the next batches, with the weights of now, in exact runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_state import differences
from tiny_runs import make_runner, state
from user_errors import raises_user_error

from mmseg_resnest.engine.hooks import PreciseBNHook

HOOK = dict(type="PreciseBNHook", interval=3, num_iters=5)


def next_batches(runner: Any, iteration: int) -> list[torch.Tensor]:
    """The inputs (4, 4) of five batches from an iteration on."""
    sampler = runner.train_dataloader.sampler
    sampler.skip(4 * iteration)
    samples = [runner.train_dataloader.dataset[i]["inputs"] for i in itertools.islice(sampler, 20)]
    return list(torch.stack(samples).split(4))


@pytest.mark.parametrize("workers", [0, 1])
def test_statistics_are_the_mean_over_the_next_batches(tmp_path: Path, workers: int) -> None:
    runner = make_runner(tmp_path, iterations=3, hooks=[HOOK], workers=workers)
    runner.train()
    linear, norm = runner.model.layers[:2]
    with torch.no_grad():
        features = [linear(batch) for batch in next_batches(runner, 3)]
    mean = torch.stack([one.mean(0) for one in features]).mean(0)
    variance = torch.stack([one.var(0) for one in features]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert norm.momentum == 0.1 and norm.num_batches_tracked == 3


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    make_runner(whole, iterations=9, hooks=[HOOK], patient=True, max_keep_ckpts=3).train()
    make_runner(part, iterations=9, hooks=[HOOK], resume=whole / "iter_3.pth").train()
    assert differences(state(whole / "iter_9.pth"), state(part / "iter_9.pth")) == []
    other = tmp_path / "without"
    make_runner(other, iterations=9).train()
    assert differences(state(whole / "iter_9.pth"), state(other / "iter_9.pth")) != []


def test_without_an_interval_each_evaluation_has_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    hook, updated = PreciseBNHook(), []
    monkeypatch.setattr(hook, "update", lambda runner: updated.append(runner.iter + 1))
    for iteration in range(10):
        hook.after_train_iter(SimpleNamespace(iter=iteration, max_iters=10, val_interval=4), 0)
    assert updated == [4, 8, 10]


def test_frozen_statistics_stay(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, iterations=3, hooks=[HOOK])
    norm = runner.model.layers[1]
    norm.train = lambda mode=True: norm  # type: ignore[method-assign]
    norm.training = False
    before = norm.running_mean.clone()
    runner.train()
    assert (norm.running_mean == before).all()


@pytest.mark.parametrize("options", [dict(interval=0), dict(interval=5, num_iters=True)])
def test_numbers_out_of_range(options: dict) -> None:
    with raises_user_error("config-value", "PreciseBNHook"):
        PreciseBNHook(**options)
