# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Runners one after the other in a process do not share what belongs to a run."""

from __future__ import annotations

import warnings
from pathlib import Path

from tiny_runs import make_runner


def test_every_run_has_a_visualizer_of_its_own(tmp_path: Path) -> None:
    """MMEngine hands out the first one again, with a warning, and its scalars go to the first."""
    made = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has been created.*")
        for name in ("first", "second"):
            runner = make_runner(tmp_path / name, iterations=1, interval=-1, visualizer_name="x")
            made.append(runner.visualizer)
            runner.train()
    assert made[0] is not made[1]
    for name in ("first", "second"):
        assert len(list((tmp_path / name).glob("*/vis_data/scalars.json"))) == 1
