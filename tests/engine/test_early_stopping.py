# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A training that a score stops, in one go and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import make_runner
from user_errors import raises_user_error

from mmseg_resnest.engine.checkpoint_schema import check_training_checkpoint

#: No score is better by a thousand: the second validation without one ends the run, at step 12.
STOPPING = dict(type="EarlyStoppingHook", monitor="score", rule="less", min_delta=1e3, patience=2)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that its score has stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    runner = make_runner(folder, 40, 4, hooks=[STOPPING], patient=True, max_keep_ckpts=-1)
    runner.train()
    assert runner.iter == 12
    return folder


@pytest.mark.parametrize("resumed_at", [8, 12])
def test_patience_survives_a_resume(stopped: Path, tmp_path: Path, resumed_at: int) -> None:
    checkpoint = stopped / f"iter_{resumed_at}.pth"
    runner = make_runner(tmp_path, 40, 4, hooks=[STOPPING], patient=True, resume=checkpoint)
    runner.train()
    assert runner.iter == 12


def test_validations_before_begin_do_not_count(tmp_path: Path) -> None:
    later = {**STOPPING, "begin": 9}  # counted: at 12, the first, and two without a better one
    runner = make_runner(tmp_path, 40, 4, hooks=[later], patient=True)
    runner.train()
    assert runner.iter == 20
    with raises_user_error("config-value", "EarlyStoppingHook"):
        make_runner(tmp_path / "other", 40, 4, hooks=[{**STOPPING, "begin": -1}], patient=True)


def test_a_state_of_another_kind_is_refused(stopped: Path, tmp_path: Path) -> None:
    record = torch.load(stopped / "iter_4.pth", weights_only=True)
    assert record["early_stopping"]["score"]["wait_count"] == 0
    record["early_stopping"]["score"]["wait_count"] = -1
    torch.save(record, tmp_path / "wrong.pth")
    with raises_user_error("resume", "wrong.pth"):
        check_training_checkpoint(str(tmp_path / "wrong.pth"))
