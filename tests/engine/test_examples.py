# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The example images of a test replace those of an earlier one, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from mmseg_resnest.engine.hooks import ExamplesHook
from mmseg_resnest.evaluation.results_file import read_examples


def test_only_own_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    ours = {"00012.jpg", "00012_label.png", "00012_pred.png", "examples.json"}
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


def test_more_sets_than_pictures_can_show_are_no_error_of_the_report(tmp_path: Path) -> None:
    class Images(list):
        metainfo = {"classes": list("abcdefgh"), "palette": [[n, 0, 0] for n in range(8)]}

    said: list[str] = []
    runner = SimpleNamespace(
        test_dataloader=SimpleNamespace(dataset=Images()),
        model=SimpleNamespace(multilabel=True),
        logger=SimpleNamespace(warning=lambda text, *parts: said.append(text % parts)),
    )
    hook = ExamplesHook(tmp_path)
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, None, [{}])
    hook.after_test_epoch(runner)
    assert read_examples(tmp_path / "examples.json")["images"] == ()
    assert "at most 7 classes" in said[0]
