# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Training is the same training: the net under every change of the code.

Twenty iterations of three configs under a fixed seed have the same losses and weights to the bit
when they are run again, stopped and resumed. The losses of ten iterations are recorded as well. In
float32 those differ between processors, and training makes 1 % of it within 20 iterations; so they
are made in float64, where a tolerance of 1e-4 is above all rounding and below the effect of another
learning rate, weight decay, loss, crop or order of samples. A change that is meant to change them
says so in its commit and records new ones.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from small_runs import HEADS, losses, run, small_config, use_sgd

from mmseg_resnest.datasets.scenes import write_scenes
from mmseg_resnest.engine.preemption import Preempted
from mmseg_resnest.registry import HOOKS

#: Losses of the first ten iterations in float64.
RECORDED = {
    "fcn": [
        *(2.979202, 2.983706, 2.970062, 2.963156, 2.963462),
        *(3.0045, 2.922414, 2.860944, 2.907439, 3.026892),
    ],
    "deeplabv3": [
        *(2.983671, 2.979682, 2.958079, 2.946954, 2.945191),
        *(3.003891, 2.935062, 2.88589, 2.913259, 3.043274),
    ],
    "encnet": [
        *(3.132996, 3.120923, 3.106047, 3.092686, 3.04463),
        *(3.173569, 3.002052, 2.942602, 2.942057, 3.222885),
    ],
}


@HOOKS.register_module()
class StopAfter(Hook):
    """Asks the run to stop after an iteration."""

    iteration: int | None = None

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


@HOOKS.register_module()
class InFloat64(Hook):
    """Trains in float64."""

    def before_run(self, runner: Any) -> None:
        runner.model.double()
        runner.model.backbone.register_forward_pre_hook(lambda _, images: (images[0].double(),))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 6, 1, progress=False)


@pytest.fixture
def signals() -> Iterator[None]:
    """A run that was stopped leaves its process deaf to more signals; put them back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [(number, signal.getsignal(number)) for number in numbers]
    yield
    for number, handler in before:
        signal.signal(number, handler)


def _config(scenes: Path, head: str, hook: str) -> Config:
    cfg = use_sgd(small_config(scenes, head, 20, default_hooks__checkpoint__interval=10))
    cfg.custom_hooks = [dict(type=hook)]
    return cfg


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    "head", [pytest.param(h, marks=pytest.mark.long if h == "deeplabv3" else ()) for h in HEADS]
)
def test_losses_are_identical(
    head: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(_config(scenes, head, "StopAfter"), tmp_path / "once")
    monkeypatch.setattr(StopAfter, "iteration", 7)
    with pytest.raises(Preempted):
        run(_config(scenes, head, "StopAfter"), tmp_path / "again")
    monkeypatch.setattr(StopAfter, "iteration", None)
    run(_config(scenes, head, "StopAfter"), tmp_path / "again", resume="auto")
    once, again = (tmp_path / name / "iter_20.pth" for name in ("once", "again"))
    assert len(losses(once)) == 20
    assert losses(again) == losses(once)
    weights = [torch.load(path, weights_only=True)["state_dict"] for path in (once, again)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("head", HEADS)
def test_losses_are_those_recorded(head: str, scenes: Path, tmp_path: Path) -> None:
    cfg = _config(scenes, head, "InFloat64")
    cfg.train_cfg.max_iters = 10  # of 20, as far as the schedules know
    run(cfg, tmp_path)
    assert losses(tmp_path / "iter_10.pth") == pytest.approx(RECORDED[head], rel=1e-4)
