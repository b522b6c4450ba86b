# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Runs that count epochs: stopped anywhere, and resumed within an epoch."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from mmengine.hooks import Hook
from tiny_runs import Data, make_plain_runner

from mmseg_resnest.engine import Runner
from mmseg_resnest.engine.latest import latest_valid_checkpoint
from mmseg_resnest.engine.preemption import Preempted, StopSignals

EPOCHS, LENGTH = 3, 4


pytestmark = pytest.mark.usefixtures("handlers")


class Batches(Hook):
    """Notes the samples of each step, and sends this process SIGTERM in one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[list[int]] = []
        self.stop_at = stop_at

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.seen.append([int(one[3]) for one in data_batch["inputs"]])
        if runner.iter == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


def _train(
    folder: Path, by_epoch: bool, resume: Path | None = None, stop_at: int | None = None
) -> tuple[Runner, list[list[int]]]:
    saving = dict(type="CheckpointHook", by_epoch=by_epoch, interval=1 if by_epoch else 2)
    runner = make_plain_runner(
        *(folder, Data(4 * LENGTH), 4, 0.01, resume),
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=EPOCHS),
        param_scheduler=dict(type="PolyLR", end=EPOCHS * LENGTH, by_epoch=False),
        default_hooks=dict(checkpoint={**saving, "max_keep_ckpts": -1}),
    )
    batches = Batches(stop_at)
    runner.register_hook(batches)
    with StopSignals() as signals:
        signals.training()
        if stop_at is None:
            runner.train()
        else:
            with pytest.raises(Preempted, match="saved at iteration"):
                runner.train()
    runner.close()
    return runner, batches.seen


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_stopped_run_goes_on_with_the_rest_of_its_epoch(
    stop_at: int, by_epoch: bool, tmp_path: Path
) -> None:
    _, whole = _train(tmp_path / "whole", by_epoch)
    _, first = _train(tmp_path / "run", by_epoch, stop_at=stop_at)
    assert len(first) == stop_at + 1
    path, _ = latest_valid_checkpoint(tmp_path / "run")
    runner, rest = _train(tmp_path / "run", by_epoch, resume=path)
    assert first + rest == whole
    assert runner.iter == runner.max_iters == EPOCHS * LENGTH
    assert runner.optim_wrapper.get_lr()["lr"][0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("saved", [2, 4, 6])  # within an epoch, and at the end of one
def test_a_checkpoint_of_any_iteration_goes_on(saved: int, tmp_path: Path) -> None:
    _, whole = _train(tmp_path, by_epoch=False)
    _, rest = _train(tmp_path, by_epoch=False, resume=tmp_path / f"iter_{saved}.pth")
    assert rest == whole[saved:]
