# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A run that was interrupted is the run that was not, bit for bit."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from run_state import differences
from tiny_runs import Data, make_runner, state

from mmseg_resnest.engine import preemption
from mmseg_resnest.engine.latest import latest_valid_checkpoint
from mmseg_resnest.engine.preemption import Preempted, StopSignals

pytestmark = pytest.mark.usefixtures("handlers")


class Signal(Hook):
    """Sends this process a signal at a moment of a run."""

    def __init__(self, moment: str, iteration: int, number: int = signal.SIGTERM) -> None:
        self.iteration, self.number = iteration, number
        setattr(self, moment, self._strike)

    def _strike(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter == self.iteration:
            os.kill(os.getpid(), self.number)
            time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    make_runner(folder).train()
    return state(folder / "iter_12.pth")


def _train(runner: Any) -> None:
    with StopSignals() as signals:
        signals.training()
        runner.train()


def _stopped(folder: Path, hook: Hook, **kw: Any) -> Path:
    """Run until the hook's signal has ended it; the checkpoint that it left."""
    runner = make_runner(folder, hooks=[hook], **kw)
    with pytest.raises(Preempted, match="stopped by SIG"):
        _train(runner)
    runner.close()
    path, skipped = latest_valid_checkpoint(folder)
    assert path is not None and not skipped
    assert (folder / "last_checkpoint").read_text() == str(path)
    return path


@pytest.mark.parametrize(
    ("moment", "iteration", "number", "saved"),
    [
        ("before_train_iter", 0, signal.SIGTERM, 1),
        ("after_train_iter", 4, signal.SIGUSR1, 6),  # after the decision: the next step's end
        ("before_train_iter", 6, signal.SIGINT, 7),
        ("after_val_iter", 4, signal.SIGTERM, 4),  # in a validation, where no save was due
        ("after_val_epoch", 4, signal.SIGTERM, 4),  # after it
        ("after_val_iter", 12, signal.SIGTERM, 12),  # in the last one
    ],
)
def test_a_stopped_run_goes_on_exactly(
    tmp_path: Path, undisturbed: dict, moment: str, iteration: int, number: int, saved: int
) -> None:
    path = _stopped(tmp_path, Signal(moment, iteration, number))
    assert path.name == f"iter_{saved}.pth"
    make_runner(tmp_path, resume=path, workers=1).train()
    assert differences(undisturbed, state(tmp_path / "iter_12.pth")) == []


@pytest.mark.parametrize("ends", [False, True])
def test_signals_are_given_back_unless_the_process_ends(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who trains from Python may catch the stop and go on; a command is on its way out."""
    monkeypatch.setattr(preemption, "_ends_with_run", ends)
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    _stopped(tmp_path, Signal("before_train_iter", 0))
    found = [signal.getsignal(number) for number in numbers]
    assert found == ([signal.SIG_IGN] * 3 if ends else before)


def test_gradients_that_are_gathered_are_finished_first(tmp_path: Path) -> None:
    """Five steps make an update: saves that are due in between wait for it."""
    make_runner(tmp_path / "undisturbed", accumulate=5, patient=True).train()
    assert sorted(p.name for p in (tmp_path / "undisturbed").glob("iter_*")) == [
        "iter_10.pth", "iter_12.pth",
    ]  # fmt: skip
    path = _stopped(tmp_path / "hit", Signal("before_train_iter", 5), accumulate=5)
    assert path.name == "iter_10.pth"
    make_runner(tmp_path / "hit", resume=path, accumulate=5).train()
    states = [state(tmp_path / d / "iter_12.pth") for d in ("undisturbed", "hit")]
    assert differences(*states) == []


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    make_runner(tmp_path, interval=2, patient=True).train()
    assert {p.name for p in tmp_path.glob("iter_*")} == {"iter_10.pth", "iter_12.pth"}
    history = state(tmp_path / "iter_12.pth")["message_hub"]["log_scalars"]["val/score"]
    scores = dict(zip((4, 8, 12), history["log_history"].tolist(), strict=True))
    best = min(scores, key=lambda step: scores[step])
    assert [p.name for p in tmp_path.glob("best_*")] == [f"best_score_iter_{best}.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "iter_12.pth")


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes the first checkpoint, of iteration 3, only when the last step is done."""
    gate = threading.Event()
    fsync = os.fsync
    waited = []
    monkeypatch.setattr(os, "fsync", lambda file: (waited.append(gate.wait(600)), fsync(file)))

    class AtTheEnd(Hook):
        def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            if runner.iter == 11:
                written.extend(p.name for p in tmp_path.glob("*.pth"))
                gate.set()

    written: list[str] = []
    make_runner(tmp_path, hooks=[AtTheEnd()]).train()
    assert written == []
    assert all(waited)
    assert latest_valid_checkpoint(tmp_path) == (tmp_path / "iter_12.pth", [])


def test_resuming_late_makes_as_few_samples_as_resuming_early(tmp_path: Path) -> None:
    make_runner(tmp_path, iterations=3).train()
    record = torch.load(tmp_path / "iter_3.pth", weights_only=True)
    made = []
    for iteration in (100, 100_000):
        record["meta"].update(iter=iteration, validation_pending=False)
        path = tmp_path / f"from_{iteration}.pth"
        torch.save(record, path)
        data = Data()
        runner = make_runner(
            tmp_path / str(iteration), iterations=iteration + 2, interval=-1, resume=path, data=data
        )
        runner.train()
        made.append(len(data.made))
        assert runner.iter == iteration + 2
    assert made == [8, 8]  # no sample of the iterations before is made again


def test_the_seed_of_the_resumed_run_counts(tmp_path: Path, undisturbed: dict) -> None:
    make_runner(tmp_path, iterations=12, interval=3, max_keep_ckpts=-1, patient=True).train()
    runner = make_runner(tmp_path / "on", resume=tmp_path / "iter_6.pth")
    runner._randomness_cfg["seed"] = 99
    runner.set_randomness(seed=99)
    runner.train()
    found = differences(undisturbed, state(tmp_path / "on" / "iter_12.pth"))
    assert found == []


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with StopSignals() as signals:
            signals.training()
            os.kill(os.getpid(), signal.SIGTERM)
            now[0] = 0.9
            os.kill(os.getpid(), signal.SIGINT)  # the launcher's echo of the first
            if signals.received != "SIGTERM":
                os._exit(1)
            now[0] = 1.1
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(2)
    monkeypatch.undo()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM


def test_before_training_a_signal_stops_where_it_is() -> None:
    with pytest.raises(Preempted, match="nothing was trained"):
        _struck_by(signal.SIGUSR1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        _struck_by(signal.SIGINT)


def _struck_by(number: int) -> None:
    with StopSignals():
        os.kill(os.getpid(), number)
        time.sleep(1)
