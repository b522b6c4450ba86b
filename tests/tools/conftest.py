# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Fixtures of the tests that run the tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tool_runs import RunTool, Toy, Trained, make_toy


@pytest.fixture(scope="session")
def run_tool() -> Iterator[RunTool]:
    """Runs a tool as processes of its own."""
    runner = RunTool()
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes to train on and three to validate on."""
    from mmseg_resnest.datasets.scenes import write_scenes

    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 6, 3, progress=False)


@pytest.fixture
def toy(tmp_path: Path, scenes: Path) -> Toy:
    """A fresh folder with ``toy.py`` and a link to the data."""
    return make_toy(tmp_path, scenes)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, scenes: Path, run_tool: RunTool) -> Trained:
    """The toy config, trained to its end in ``work_dirs/toy``."""
    toy = make_toy(tmp_path_factory.mktemp("trained"), scenes)
    run = run_tool("train.py", "toy.py", cwd=toy.folder).check()
    work_dir = toy.folder / "work_dirs" / "toy"
    return Trained(toy, run, work_dir, work_dir / "iter_6.pth")
