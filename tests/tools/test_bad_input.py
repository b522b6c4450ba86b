# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Bad input to train, test and predict: one clear error, exit code 2, and nothing written.

And docs/bad_input.md, which ``make bad-input`` writes, says what the tools say today.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_input import CASES, DOCUMENT, TABLE, Case, make_files, message, row_of, run_case
from tool_runs import Run, RunTool, Toy, Trained, make_toy


@pytest.fixture(scope="module")
def full_toy(tmp_path_factory: pytest.TempPathFactory, scenes: Path, trained: Trained) -> Toy:
    """The toy folder with files that are wrong in many ways."""
    toy = make_toy(tmp_path_factory.mktemp("wrong"), scenes)
    make_files(toy, trained)
    return toy


@pytest.fixture(scope="module")
def document() -> list[str]:
    return DOCUMENT.read_text(encoding="utf-8").splitlines()


def _listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


# Each costs seconds: the suite runs a third of all kinds, `make bad-input` all of them.
@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.fed.replace(" ", "_"))
def test_bad_input(
    case: Case, full_toy: Toy, trained: Trained, run_tool: RunTool, document: list[str]
) -> None:
    before = _listing(full_toy.folder) | {"wrong.py"}
    run = run_case(case, full_toy, trained, run_tool)
    said = run.stdout[-1000:] + run.stderr[-4000:]
    assert run.returncode == case.code, said
    _one_error(run)
    text = message(case, run, full_toy.folder)
    for part in case.says:
        assert part in text
    if not case.leaves:
        assert _listing(full_toy.folder) <= before
    assert row_of(case, text, run.returncode) in document, "`make bad-input` writes it anew"


def _one_error(run: Run) -> None:
    assert "Traceback" not in run.stdout + run.stderr, run.stderr[-4000:]
    lines = [line for line in run.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1, run.stderr[-4000:]


def test_the_page_has_these_cases_and_no_others(document: list[str]) -> None:
    rows = [line.split(" | ") for line in document if line.startswith("| ")][1:]
    shown = [(row[0][2:], row[1]) for row in rows if row[1] != "tool"]
    assert shown == [(case.fed, case.tool) for case in CASES]
    assert len({case.fed for case in CASES}) == len(CASES) >= 45
    assert {case.tool for case in CASES} == {"train", "test", "predict"}
    assert [line[3:] for line in document if line.startswith("## ")] == list(TABLE)


def test_code_in_a_checkpoint_never_ran(full_toy: Toy) -> None:
    """The checkpoints that run code would have made this file."""
    assert not (full_toy.folder / "executed").exists()


def test_converting_a_checkpoint_that_runs_code(full_toy: Toy, run_tool: RunTool) -> None:
    args = ["convert_checkpoint.py", "evil.pth", "converted.pth"]
    error = run_tool(*args, cwd=full_toy.folder).error()
    assert "evil.pth" in error and "refused" in error
    assert not (full_toy.folder / "executed").exists()


def test_the_traceback_of_a_worker_is_in_the_log(
    full_toy: Toy, trained: Trained, run_tool: RunTool
) -> None:
    case = next(case for case in CASES if case.fed == "a transform that fails in a worker")
    run_case(case, full_toy, trained, run_tool)
    (log,) = full_toy.folder.glob("work_dirs/*/*/*.log")
    assert "Original Traceback" in log.read_text()
