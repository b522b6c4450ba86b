# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of ``fit`` tell people to do is done, and then it goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from advice import advises, helps

from mmseg_resnest.engine.fit.decide import read_class_weights
from mmseg_resnest.engine.fit.facts import check_facts
from mmseg_resnest.engine.fit.steps import _with_options


def test_labels_of_both_parts() -> None:
    def check(classes: tuple[str, ...], train: list[int], val: list[int]) -> None:
        facts: Any = SimpleNamespace(
            classes=classes, train_pixels=train, val_pixels=val, train_images=8, val_images=2
        )
        check_facts(facts, "mine")

    with advises("engine/fit/facts.py:check_facts", "--background NAME"):
        check(("cat",), [9], [9])
    check(("cat", "ground"), [9, 9], [9, 9])  # with --background ground
    with advises("engine/fit/facts.py:check_facts", "--ignore NAME", "--seed", "--val-list"):
        check(("cat", "dog", "bird"), [9, 9, 0], [9, 9, 9])
    check(("cat", "dog"), [9, 9], [9, 9])  # with --ignore bird
    check(("cat", "dog", "bird"), [9, 9, 9], [9, 9, 0])  # split anew


def test_files_of_class_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.txt"
    weights = helps(
        "engine/fit/decide.py:read_class_weights", "a class and its weight a line",
        call=lambda: read_class_weights(file, ("cat", "dog")),
        remedy=lambda: file.write_text("cat 1\ndog 2.5\n"),
    )  # fmt: skip
    assert weights == (1, 2.5)


def test_options_of_what_fit_has_prepared() -> None:
    text = "data_root = 'x'\ntrain_dataloader = dict(dataset=dict(type='CustomDataset'))\n"
    text = f"default_scope = 'mmseg_resnest'\n{text}"
    with advises("engine/fit/steps.py:_with_options", "leave it"):
        _with_options(text, ["data_root=y"])
    assert _with_options(text, [])
