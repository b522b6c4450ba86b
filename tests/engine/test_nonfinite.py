# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""NaN does not get into the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from tiny_runs import Data, make_runner, state
from user_errors import raises_user_error

from mmseg_resnest.engine.hooks import NonFiniteHook

BAD = 7  # sample of the data set that is NaN


def _first_bad(folder: Path) -> tuple[int, list[str]]:
    report = next(folder.glob("nonfinite_iter_*/process_0.json"))
    found = json.loads(report.read_text())
    return found["iteration"], found["files"]


def test_the_run_stops_before_the_update(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, data=Data(bad=BAD), interval=1, patient=True)
    with raises_user_error("nonfinite", "iteration "):
        runner.train()
    runner.close()
    iteration, files = _first_bad(tmp_path)
    assert f"{BAD}.png" in files and len(files) == 4
    folder = tmp_path / f"nonfinite_iter_{iteration}"
    batch = torch.load(folder / "process_0.pth", weights_only=True)["batches"][0]
    assert batch["files"] == files
    assert sum(bool(sample.isnan().any()) for sample in batch["inputs"]) == 1
    saved = torch.load(folder / "state.pth", weights_only=True)
    assert saved["meta"]["iter"] == iteration - 1
    weights = {k: v for k, v in saved["state_dict"].items() if "running" not in k}
    assert all(v.isfinite().all() for v in weights.values())
    if iteration > 1:
        before = state(tmp_path / f"iter_{iteration - 1}.pth")["ema_state_dict"]
        same = [torch.equal(v, saved["ema_state_dict"][k]) for k, v in before.items()]
        buffers = ("running", "num_batches")
        assert all(s for k, s in zip(before, same, strict=True) if not any(b in k for b in buffers))


def test_or_skips_the_update(tmp_path: Path) -> None:
    """Weights and running statistics stay finite, and the optimiser does not count the step."""
    runner = make_runner(tmp_path, data=Data(bad=BAD), on_nonfinite="skip")
    hook = next(h for h in runner.hooks if isinstance(h, NonFiniteHook))
    runner.train()
    assert 0 < hook.skipped < 12
    assert len(list(tmp_path.glob("nonfinite_iter_*"))) == hook.skipped
    record = state(tmp_path / "iter_12.pth")
    for name, value in [*record["state_dict"].items(), *record["ema_state_dict"].items()]:
        assert value.isfinite().all(), name
    assert int(record["optimizer"]["state"][0]["step"]) == 12 - hook.skipped
    losses = record["message_hub"]["log_scalars"]["train/loss"]["log_history"]
    assert sum(map(math.isnan, losses.tolist())) == hook.skipped


def test_a_gradient_alone_is_enough(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    weight = runner.model.layers[0].weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with raises_user_error("nonfinite", "iteration 1") as failure:
        runner.train()
    assert "layers.0.weight" in failure.value.message
    runner.close()


def test_the_option_is_checked() -> None:
    with raises_user_error("config-value", "default_hooks.nonfinite.on_nonfinite"):
        NonFiniteHook(on_nonfinite="go on")
