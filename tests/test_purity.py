# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Importing and using the library leaves the process as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, os.fspath(ROOT / "tests" / "tools"))


def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    from tool_runs import make_toy

    from mmseg_resnest.datasets.scenes import write_scenes

    scenes = write_scenes(tmp_path / "data" / "scenes", 6, 3, progress=False)
    (tmp_path / "run").mkdir()
    toy = make_toy(tmp_path / "run", scenes)
    few = "train_cfg = dict(max_iters=2, val_interval=2)\n"
    config = toy.variant("few", few)
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), "MPLBACKEND": "Agg"}
    run = subprocess.run(
        [sys.executable, ROOT / "tests" / "purity_script.py", toy.folder, config],
        capture_output=True,
        text=True,
        env=environment,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    for what, said in found.items():
        assert not said, f"{what} changed {said}"
