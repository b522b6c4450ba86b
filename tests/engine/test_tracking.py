# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Curves elsewhere: what is written there, going on, and services that fail."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_services import Calls, fake_mlflow, fake_wandb
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from user_errors import raises_user_error

from mmseg_resnest.engine.hooks import ConsoleHook
from mmseg_resnest.engine.tracking import Tracker, check_services


def test_services_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    check_services(["wandb", "mlflow"])
    with raises_user_error("argument", "--log-to clearml"):
        check_services(["clearml"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with raises_user_error("missing-package", "--log-to mlflow"):
        check_services(["mlflow"])


def test_back_ends_of_services_have_their_names() -> None:
    services = [dict(type="Tracker", name=s, service=s) for s in ("wandb", "mlflow")]
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        visualizer = Visualizer(
            vis_backends=[dict(type="LocalVisBackend"), *services], save_dir="run/time"
        )
    assert list(visualizer._vis_backends) == ["LocalVisBackend", "wandb", "mlflow"]


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_run_goes_on_where_it_was(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    calls = Calls()
    fake = {"wandb": fake_wandb, "mlflow": fake_mlflow}[service](calls)
    monkeypatch.setitem(sys.modules, service, fake)

    def start(resume: bool) -> Any:
        calls.clear()
        tracker = Tracker(str(tmp_path / "run" / "time" / "vis_data"), service)
        tracker.add_config(Config(dict(resume=resume, lr=0.1)))
        tracker.add_scalars({"loss": 0.5, "time": 2.5, "step": 20, "iter": 20}, 20)
        # The times of a validation are those of an image.
        tracker.add_scalars({"mIoU": 40.0, "time": 0.1, "data_time": 0.01, "step": 20}, 20)
        tracker.close()
        if service == "wandb":
            assert calls.named("log") == [
                ({"loss": 0.5, "time": 2.5, "iteration": 20}, {}),
                ({"mIoU": 40.0, "iteration": 20}, {}),
            ]
            assert len(calls.named("finish")) == 1
            return calls.named("init")[0][0]["id"]
        assert calls.named("log_metrics") == [
            ({"loss": 0.5, "time": 2.5}, 20, {}),
            ({"mIoU": 40.0}, 20, {}),
        ]
        assert len(calls.named("end_run")) == 1
        assert calls.named("start_run")[0]["run_name"] == "run"
        return calls.named("start_run")[0]["run_id"]

    (tmp_path / "run").mkdir()
    assert [start(False), start(True), start(False)] == [None, "run1", None]


def test_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    fake = fake_wandb(calls)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = Tracker(str(tmp_path / "time" / "vis_data"), "wandb")
    tracker.add_config(Config(dict()))

    def fail(*a: Any, **k: Any) -> None:
        raise OSError("the network is gone\nmore")

    said: list[str] = []
    monkeypatch.setattr(
        MMLogger.get_current_instance(), "warning", lambda text, *a: said.append(text % a)
    )
    fake.log = fail  # type: ignore[attr-defined]
    tracker.add_scalar("a", 1.0, 1)
    tracker.add_scalar("a", 1.0, 2)
    assert len(said) == 1 and "the network is gone" in said[0]
    fake.init = fail  # type: ignore[attr-defined]
    with raises_user_error("network", "--log-to wandb"):
        Tracker(str(tmp_path / "time" / "vis_data"), "wandb").add_config(Config(dict()))


def test_tensorboard_reads_it_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard here"
    )
    for start, resume in ((0, False), (40, True)):
        tracker = Tracker(str(tmp_path / f"t{start}" / "vis_data"), "tensorboard")
        tracker.add_config(Config(dict(resume=resume)))
        for step in (start + 20, start + 40):
            tracker.add_scalars({"loss": 1 / step, "iter": step}, step)
        tracker.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(e.step, e.value) for e in events.Scalars("loss")]
    assert found == [(s, pytest.approx(1 / s)) for s in (20, 40, 60, 80)]


def test_the_first_iteration_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the interval; the next ones are those of the interval."""
    printed: list[int] = []
    hook = ConsoleHook()
    hook._on, hook._interval, hook._iterations, hook._pending = True, 500, 0, 0
    hook._train_seconds, hook._line_seconds, hook._since = 0.0, 0.0, 0.0
    hook._last_line = hook._last_text = float("inf")
    hook._bar = SimpleNamespace(update=lambda: None, disable=True)  # type: ignore[assignment]
    monkeypatch.setattr(hook, "_print_line", lambda runner, done: printed.append(done))
    for done in range(2000, 3500):  # of a run that is resumed
        hook.after_train_iter(SimpleNamespace(iter=done, max_iters=9000), done)  # type: ignore[arg-type]
    assert printed == [2001, 2500, 3000, 3500]


def test_text_behind_the_bar() -> None:
    hook = ConsoleHook()
    hook._train_seconds, hook._iterations, hook._batch = 10.0, 21, 16  # the first has no share
    hook._validations = []
    hook._score = ("mIoU", 48.124)
    runner: Any = SimpleNamespace(max_iters=220, val_loop=None)
    assert (
        hook._text(runner, 20, 0.4119) == "loss 0.412, 32.0 images/s, mIoU 48.12, 1 min 40 s left"
    )
    hook._score = None
    assert hook._text(runner, 20, None) == "32.0 images/s, 1 min 40 s left"
