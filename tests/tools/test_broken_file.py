# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A file that breaks while training reads it, in a data loading worker."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tool_runs import RunTool, Toy
from user_errors import printed_error


def _truncate(scenes: Path) -> Path:
    file = sorted((scenes / "images/training").iterdir())[2]
    file.write_bytes(file.read_bytes()[:2000])
    return file


def _spoil(scenes: Path) -> Path:
    file = sorted((scenes / "annotations/training").iterdir())[3]
    labels = np.array(Image.open(file))
    labels[5:9, 7] = 99
    Image.fromarray(labels).save(file)
    return file


def _remove(scenes: Path) -> Path:
    file = sorted((scenes / "annotations/training").iterdir())[1]
    file.unlink()
    return file


_LENGTH = 100_000  # more than a run can do before its file is broken
BREAK = {
    "truncated image": (_truncate, "image"),
    "label out of range": (_spoil, "label"),
    "label map gone": (_remove, "not-found"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", BREAK)
def test_one_error_that_names_the_file(name: str, toy: Toy, run_tool: RunTool) -> None:
    breaks, code = BREAK[name]
    source = toy.scenes.resolve()
    toy.scenes.unlink()
    shutil.copytree(source, toy.scenes)
    broken: list[Path] = []

    def when(pid: int, stdout: str) -> None:
        if re.search(rf"^ *\d+/{_LENGTH} ", stdout, re.M) and not broken:
            broken.append(breaks(toy.scenes))

    long = [
        f"{key}={_LENGTH}"
        for key in ("train_cfg.max_iters", "train_cfg.val_interval", "param_scheduler.0.end")
    ]
    workers = ("train_dataloader.num_workers=2", "train_dataloader.persistent_workers=True")
    run = run_tool(
        "train.py",
        "toy.py",
        "--cfg-options",
        *long,
        *workers,
        cwd=toy.folder,
        when=when,
    )
    found, text = printed_error(run.error())  # exit code 2, no traceback
    assert found == code
    assert text.startswith(str(broken[0].relative_to(toy.folder)))
