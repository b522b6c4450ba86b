# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""tools/check_data.py, run as a process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tool_runs import RunTool, Toy
from user_errors import printed_error


@pytest.fixture
def own(toy: Toy) -> Toy:
    """The toy with data of its own, to be spoiled."""
    data = toy.folder / "scenes"
    source = data.resolve()
    data.unlink()
    shutil.copytree(source, data)
    return toy


# The toy's six images do not show every class.
CLASSES = ("--ignore", "class_never", "class_only_val")


def test_clean_data(own: Toy, run_tool: RunTool) -> None:
    run = run_tool("check_data.py", "toy.py", *CLASSES, cwd=own.folder)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "train: 6 images (160x128)" in run.stdout
    assert "test: the files of val" in run.stdout
    assert "no problem in 9 images" in run.stdout
    assert run.stderr == ""


def test_problems_are_printed_and_written(own: Toy, run_tool: RunTool) -> None:
    bad = sorted((own.scenes / "annotations" / "training").iterdir())[2]
    labels = np.array(Image.open(bad))
    labels[0, 0] = 99
    Image.fromarray(labels).save(bad)
    args = ("--json", "j.json", "--fix-list", "fix.txt", "--report", "page.html", *CLASSES)
    run = run_tool("check_data.py", "toy.py", "--split", "train", *args, cwd=own.folder)
    assert run.returncode == 1, run.stdout + run.stderr
    assert f"{bad.name}: holds 99 (1 pixels)" in run.stdout
    found = json.loads((own.folder / "j.json").read_text(encoding="utf-8"))
    assert [p["kind"] for p in found["problems"]] == ["label_out_of_range"]
    assert found["splits"]["train"]["samples"] == 6
    fix = (own.folder / "fix.txt").read_text(encoding="utf-8").split("\t")
    assert fix[0] == "label_out_of_range"
    assert Path(fix[1]).name == bad.name
    assert "holds 99" in (own.folder / "page.html").read_text(encoding="utf-8")

    # Training refuses it at the start, before it writes anything.
    error = run_tool("train.py", "toy.py", cwd=own.folder).error()
    assert f"{bad.name}: holds 99 (1 pixels)" in error and "[dataset]" in error
    assert not (own.folder / "work_dirs").exists()


def test_what_cannot_be_checked(own: Toy, run_tool: RunTool) -> None:
    def error_of(*args: str) -> tuple[str, str]:
        run = run_tool("check_data.py", "toy.py", *args, cwd=own.folder)
        code, text = printed_error(run.error())
        return code, text.partition(": ")[0]

    assert error_of("--workers", "0") == ("argument", "argument --workers")
    assert error_of("--ignore", "gray") == ("argument", "--ignore gray")
    shutil.rmtree(own.scenes / "images" / "validation")
    assert error_of() == ("not-found", "scenes/images/validation")
