# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The short form of ``make chaos``: a few disturbances."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import HITS, Chaos
from run_state import differences, final_state
from tool_runs import RunTool, make_toy


@pytest.mark.parametrize(
    "hits",
    [
        ("saving", "truncated", "worker"),
        pytest.param(("saving", "truncated", "term", "worker", "kill"), marks=pytest.mark.long),
    ],
    ids=len,
)
def test_a_run_survives_disturbances(
    hits: tuple[str, ...], tmp_path: Path, scenes: Path, run_tool: RunTool
) -> None:
    chaos = Chaos(make_toy(tmp_path, scenes), run_tool, seed=3, by_iteration=True)
    chaos.undisturbed()
    for name in hits:
        chaos.hit(HITS[name])
    chaos.finish()
    assert chaos.problems == []
    assert chaos.compared >= 1
    assert sum(struck for *_, struck in chaos.rows) >= len(hits) - 1
    # What is compared can differ.
    work_dir = tmp_path / "undisturbed"
    line = next(work_dir.glob("*/vis_data/scalars.json"))
    text = line.read_text()
    line.write_text(text.replace('"loss": 2', '"loss": 3', 1))
    assert differences(chaos.expected, final_state(work_dir))
