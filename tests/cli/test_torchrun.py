# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What torchrun starts again, by the exit code of a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "starts"), [(1, 1), (2, 1), (75, 3)], ids=["fault", "mistake", "lost process"]
)
def test_only_what_may_pass_is_started_again(code: int, starts: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"print(file=open('starts', 'a'))\nraise SystemExit({code})\n")
    options = [
        "--nproc-per-node=1",
        "--max-restarts=2",
        "--master-port=0",
        "--monitor-interval=0.1",
    ]
    command = [sys.executable, "-m", "mmseg_resnest_cli.torchrun", *options, str(script)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stderr[-2000:]
    assert len((tmp_path / "starts").read_text().splitlines()) == starts
