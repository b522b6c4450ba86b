# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The example images of a test replace those of an earlier one, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from mmseg_resnest.engine.hooks import ExamplesHook


def test_only_own_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    ours = {"00012.jpg", "00012_label.png", "00012_pred.png", "part0.json", "examples.json"}
    others = {"photo.jpg", "00012.png", "12.jpg", "notes.txt", "part.json", "00012_mask.png"}
    for name in ours | others:
        (folder / name).write_text("[]")
    (folder / "00013.jpg").mkdir()

    class NoImages(list):
        metainfo = {"classes": ["a"], "palette": [[0, 0, 0]]}

    loader = SimpleNamespace(dataset=NoImages())
    runner = SimpleNamespace(test_dataloader=loader, model=None)
    hook = ExamplesHook(folder)
    hook.before_test_epoch(runner)
    assert set(os.listdir(folder)) == {*others, "00013.jpg"}
    hook.after_test_epoch(runner)
    assert set(os.listdir(folder)) == {*others, "00013.jpg", "examples.json"}
