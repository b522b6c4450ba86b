# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Bad input to train, test and predict: one error with its code, exit code 2, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bad_input import CASES, Case, check, check_remedy, make_files, run_case
from tool_runs import RunTool, Toy, Trained, make_toy
from user_errors import printed_error

# Each costs seconds: the suite runs one of eight, `make bad-input` all of them.
ALL = bool(os.environ.get("ALL_BAD_INPUT"))
CHOSEN = CASES if ALL else CASES[::8]


@pytest.fixture(scope="module")
def full_toy(tmp_path_factory: pytest.TempPathFactory, scenes: Path, trained: Trained) -> Toy:
    """The toy folder with files that are wrong in many ways."""
    toy = make_toy(tmp_path_factory.mktemp("wrong"), scenes)
    make_files(toy, trained)
    return toy


def _listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.fed.replace(" ", "_"))
def test_bad_input(case: Case, full_toy: Toy, trained: Trained, run_tool: RunTool) -> None:
    before = _listing(full_toy.folder) | {"wrong.py"}
    run = run_case(case, full_toy, trained, run_tool)
    check(case, run)
    if not case.leaves:
        assert _listing(full_toy.folder) <= before
    if ALL and case.remedy is not None:
        check_remedy(case, run, full_toy, trained, run_tool)


def test_code_in_a_checkpoint_never_ran(full_toy: Toy) -> None:
    """The checkpoints that run code would have made this file."""
    assert not (full_toy.folder / "executed").exists()


def test_converting_a_checkpoint_that_runs_code(full_toy: Toy, run_tool: RunTool) -> None:
    args = ["convert_checkpoint.py", "evil.pth", "converted.pth"]
    code, text = printed_error(run_tool(*args, cwd=full_toy.folder).error())
    assert code == "checkpoint-unsafe"
    assert "evil.pth" in text
    assert not (full_toy.folder / "executed").exists()


@pytest.mark.long
def test_the_traceback_of_a_worker_is_in_the_log(
    full_toy: Toy, trained: Trained, run_tool: RunTool
) -> None:
    fed = "a transform that fails in a worker after some samples"
    case = next(case for case in CASES if case.fed == fed)
    run_case(case, full_toy, trained, run_tool)
    (log,) = full_toy.folder.glob("work_dirs/*/*/*.log")
    assert "Original Traceback" in log.read_text()
