# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A model is built once, and random numbers go on as if the runner had built it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn
from user_errors import raises_user_error

from mmseg_resnest.engine import model as models
from mmseg_resnest.engine.model import build_seeded_model
from mmseg_resnest.engine.process_state import restored_process
from mmseg_resnest.engine.runner import Runner
from mmseg_resnest.registry import MODELS


@MODELS.register_module()
class DrawingModel(BaseModel):
    """Draws from every generator while it is built."""

    built = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).built += 1
        self.layer = nn.Linear(3, 2)
        self.noise = random.random(), float(np.random.rand())

    def forward(self, inputs: Any, mode: str = "tensor", **rest: Any) -> Any:
        return inputs


def _config(folder: Path, **randomness: Any) -> Config:
    return Config(
        dict(
            default_scope="mmseg_resnest",
            model=dict(type="DrawingModel"),
            work_dir=str(folder),
            randomness=randomness,
            log_level="ERROR",
            experiment_name=f"drawing_{DrawingModel.built}_{len(randomness)}",
        )
    )


def _draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def _same(one: Any, other: Any) -> bool:
    return one.noise == other.noise and torch.equal(one.layer.weight, other.layer.weight)


def test_numbers_are_those_of_a_runner_that_builds_the_model(tmp_path: Path) -> None:
    with restored_process():
        theirs = Runner.from_cfg(_config(tmp_path / "theirs", seed=3))
        expected = _draws()
    count = DrawingModel.built
    with restored_process():
        cfg = _config(tmp_path / "ours", seed=3)
        built = build_seeded_model(cfg)
        _draws()  # what is checked before the runner may draw, too
        ours = Runner.from_cfg(cfg, built)
        found = _draws()
    assert DrawingModel.built == count + 1
    assert found == expected
    assert ours.seed == theirs.seed == 3
    assert _same(ours.model, theirs.model)


def test_a_drawn_seed_gives_the_run_again(tmp_path: Path) -> None:
    with restored_process():
        cfg = _config(tmp_path / "drawn")
        drawn = Runner.from_cfg(cfg, build_seeded_model(cfg))
        expected = _draws()
    assert drawn.seed is not None
    assert drawn.cfg.randomness.get("seed") is None
    with restored_process():
        cfg = _config(tmp_path / "again", seed=drawn.seed)
        again = Runner.from_cfg(cfg, build_seeded_model(cfg))
        assert _draws() == expected
    assert _same(again.model, drawn.model)


def test_processes_may_have_seeds_of_their_own(tmp_path: Path) -> None:
    with restored_process():
        cfg = _config(tmp_path, seed=3, diff_rank_seed=True)
        second = build_seeded_model(cfg, rank=1).model
        same = build_seeded_model(_config(tmp_path, seed=4)).model
        first = build_seeded_model(_config(tmp_path, seed=3), rank=1).model
    assert _same(second, same)
    assert not _same(first, second)


def test_without_a_seed_the_first_process_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with restored_process():
        first, second = (build_seeded_model(_config(tmp_path), rank) for rank in (0, 1))
        chosen = build_seeded_model(_config(tmp_path, seed=5), 1)

        def broadcast(values: list[Any], src: int) -> None:
            values[0] = (first.seed, first.state)

        monkeypatch.setattr(models, "get_world_size", lambda: 2)
        monkeypatch.setattr(models, "get_rank", lambda: 1)
        monkeypatch.setattr(models.dist, "broadcast_object_list", broadcast)
        for model in (second, chosen):
            model.agree_on_seed()
        assert (second.seed, chosen.seed) == (first.seed, 5)
        first.continue_draws()
        expected = _draws()
        second.continue_draws()
        assert _draws() == expected


def test_a_value_that_does_not_fit_names_the_key(tmp_path: Path) -> None:
    cfg = _config(tmp_path, seed=1)
    cfg.model.unknown = 1
    with restored_process(), raises_user_error("config-value", "config key model"):
        build_seeded_model(cfg)
