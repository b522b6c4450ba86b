# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The numbers on the console of a training run, by a clock that tests move."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from tiny_runs import Data, make_plain_runner
from torch.utils.data import DataLoader, SequentialSampler

from mmseg_resnest.engine import Runner
from mmseg_resnest.engine.hooks import ConsoleHook, ResultsHook, console

STEP, FIRST, VALIDATION = 10.0, 500.0, 100.0  # seconds


class Moves(Hook):
    """Moves the clock: the first iteration compiles."""

    priority = "HIGHEST"
    now = 0.0

    def before_train(self, runner: Any) -> None:
        self.first = True

    def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self.now += FIRST if self.first else STEP
        self.first = False

    def before_val_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self.now += VALIDATION / len(runner.val_dataloader)


class Scores(BaseMetric):
    """Scores that are known before."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.values = list(values)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {"score": self.values.pop(0)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Moves:
    moves = Moves()
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: moves.now))
    return moves


def _run(
    folder: Path,
    clock: Moves,
    loop: dict[str, Any],
    scores: Sequence[float] = range(99),
    resume: Path | None = None,
    schedule: dict[str, Any] | None = None,
) -> Runner:
    """A run of 12 samples in batches of 4, with a line for each iteration; not started."""
    loader = DataLoader(Data(), 2, sampler=SequentialSampler(range(10)), collate_fn=pseudo_collate)
    runner = make_plain_runner(
        folder, Data(12), 4, 0.1, resume,
        train_cfg=loop,
        val_dataloader=loader,
        val_cfg={"type": "ValLoop"},
        val_evaluator=[Scores(scores)],
        param_scheduler=schedule,
        default_hooks={
            "checkpoint": {
                "type": "CheckpointHook", "interval": 4, "by_epoch": False, "save_last": False,
            },
            "logger": {"type": "LoggerHook", "interval": 1},
        },
    )  # fmt: skip
    for hook in (clock, ConsoleHook(title="t", config="c"), ResultsHook()):
        runner.register_hook(hook)
    return runner


def _seconds(text: str) -> int:
    hours, minutes, seconds = re.fullmatch(
        r"(?:(\d+) h )?(?:(\d+) min)? ?(?:(\d+) s)?", text
    ).groups(default="0")  # type: ignore[union-attr]
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds)


def _lines(said: str) -> list[tuple[int, float, str, str]]:
    """Iteration, learning rate, seconds an iteration and time left of each line."""
    found = re.findall(r"^ +(\d+)/\d+ +[\d.]+ +(\S+) +(\S+) +(\S.*)$", said, re.M)
    return [(int(step), float(rate), each, left) for step, rate, each, left in found]


ITERATIONS = {"type": "IterBasedTrainLoop", "max_iters": 12}


@pytest.mark.parametrize(
    ("loop", "after"),
    [
        ({**ITERATIONS, "val_interval": 4}, [4, 8, 12]),
        ({**ITERATIONS, "val_interval": 5}, [5, 10, 12]),
        ({**ITERATIONS, "val_interval": 4, "val_begin": 7}, [8, 12]),
        ({**ITERATIONS, "val_interval": 5, "dynamic_intervals": [(9, 2)]}, [5, 8, 10, 12]),
        ({"type": "EpochBasedTrainLoop", "max_epochs": 4, "val_interval": 1}, [3, 6, 9, 12]),
        ({"type": "EpochBasedTrainLoop", "max_epochs": 4, "val_interval": 3}, [9, 12]),
    ],
)
def test_the_time_left_is_that_which_the_run_takes(
    loop: dict[str, Any], after: list[int], clock: Moves, tmp_path: Path, capsys
) -> None:
    """With the validations to come; the first iteration, which takes longer, is no measure."""
    runner = _run(tmp_path, clock, loop)
    runner.train()
    said = capsys.readouterr().out
    assert [int(n) for n in re.findall(r"^ +(\d+)/12 +took", said, re.M)] == after
    known = [line for line in _lines(said) if line[0] > max(after[0], 1)]
    assert len(known) == 12 - after[0]
    for step, _, each, left in known:
        validations = sum(step <= one for one in after)
        assert _seconds(left) == STEP * (12 - step) + VALIDATION * validations, step
        assert float(each) == STEP


def test_a_line_has_the_rate_and_the_seconds_of_its_iterations(
    clock: Moves, tmp_path: Path, capsys
) -> None:
    """Also where a validation has it printed, behind the schedule's next step."""
    schedule = {"type": "MultiStepLR", "milestones": [5, 10], "by_epoch": False}
    runner = _run(tmp_path, clock, {**ITERATIONS, "val_interval": 5}, schedule=schedule)
    (logger,) = [hook for hook in runner.hooks if type(hook).__name__ == "LoggerHook"]
    logger.interval = 4
    runner.train()
    lines = _lines(capsys.readouterr().out)
    assert [line[0] for line in lines] == [1, 4, 5, 8, 10, 12]
    assert [line[1] for line in lines] == [0.1, 0.1, 0.1, 0.01, 0.01, 0.001]
    assert [float(line[2]) for line in lines] == [FIRST, *5 * [STEP]]


def test_the_best_so_far_is_that_of_the_whole_run(clock: Moves, tmp_path: Path, capsys) -> None:
    """Of a run that was resumed, too, and whatever is not a number."""
    loop = {**ITERATIONS, "val_interval": 4}
    nan = float("nan")
    _run(tmp_path / "first", clock, loop, [nan, 3.0, 2.0]).train()
    _run(tmp_path / "on", clock, loop, [2.5], tmp_path / "first" / "iter_8.pth").train()
    lines = [line for line in capsys.readouterr().out.splitlines() if " took " in line]
    assert ["best so far" in line for line in lines] == [False, True, False, False]
