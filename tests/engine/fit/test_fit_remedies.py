# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of ``fit`` tell people to do is done, and then it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from advice import advises, helps

from mmseg_resnest.engine.fit import (
    Budget,
    Facts,
    FitFolder,
    Measured,
    Origin,
    Plan,
    Step,
    Wishes,
    check_facts,
    choose,
    decide,
    find_origin,
    read_class_weights,
    write_config,
)
from mmseg_resnest.engine.fit.steps import _with_options

GIB = 1 << 30
FACTS = Facts(
    train_images=9, val_images=3, width=480, height=360, classes=("sky", "road"),
    train_pixels=(5, 5), val_pixels=(5, 5), memory=GIB, cores=2,
)  # fmt: skip
#: Steps of 2 and 8 images.
MEASURED = Measured((Step(2, int(0.7 * GIB), 1.0), Step(8, int(1.3 * GIB), 4.0)), val_seconds=0.1)


def test_labels_of_both_parts() -> None:
    def check(classes: tuple[str, ...], train: list[int], val: list[int]) -> None:
        facts: Any = SimpleNamespace(
            classes=classes,
            train_pixels=train,
            val_pixels=val,
            train_images=8,
            val_images=2,
            multilabel=False,
        )
        check_facts(facts, "mine")

    with advises("engine/fit/facts.py:check_facts", "--background NAME"):
        check(("cat",), [9], [9])
    check(("cat", "ground"), [9, 9], [9, 9])  # with --background ground
    with advises("engine/fit/facts.py:check_facts", "--ignore NAME", "--seed", "--val-list"):
        check(("cat", "dog", "bird"), [9, 9, 0], [9, 9, 9])
    check(("cat", "dog"), [9, 9], [9, 9])  # with --ignore bird
    check(("cat", "dog", "bird"), [9, 9, 9], [9, 9, 0])  # split anew
    with advises("engine/fit/facts.py:check_facts", "label some of them, or split anew"):
        check(("cat", "dog"), [9, 9], [0, 0])


def test_files_of_class_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.txt"
    weights = helps(
        "engine/fit/decide.py:read_weight_lines", "a class and its weight a line",
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


def test_memory_and_time_that_do_not_suffice() -> None:
    def plan(facts: Facts = FACTS, seconds: float = 600, batch: int = 6) -> Plan:
        wishes = Wishes(Budget(seconds=seconds), batch_size=batch)
        return decide(facts, wishes, Origin(), choose(facts, wishes, Origin()), MEASURED)

    with advises("engine/fit/decide.py:_too_little_memory", "free some", "smaller", "--batch-size"):
        plan()
    assert plan(replace(FACTS, memory=4 * GIB))["batch_size"] == 6
    assert plan(batch=2)["batch_size"] == 2
    with advises("engine/fit/decide.py:_length", "give more"):
        plan(seconds=5, batch=2)


def test_configs_that_are_there(tmp_path: Path) -> None:
    place = FitFolder(tmp_path / "fit")
    text = "default_scope = 'mmseg_resnest'\n"
    write_config(place, text)
    place.config.write_text(f"{text}# mine\n")
    helps("engine/fit/steps.py:write_config", "or move it",
          call=lambda: write_config(place, text), remedy=place.config.unlink)  # fmt: skip
    place.run.mkdir()
    (place.run / "iter_1.pth").touch()
    with advises("engine/fit/steps.py:write_config", "name another folder", "repeat the command"):
        write_config(place, f"{text}# another\n")
    write_config(FitFolder(tmp_path / "other"), f"{text}# another\n")
    write_config(place, text)


def test_weights_that_do_not_name_their_model(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, file)
    with advises("engine/fit/weights.py:_trained", "--base"):
        find_origin(str(file), False)
    assert find_origin(str(file), False, base="fcn_resnest14_camvid").starts
    with advises("engine/fit/weights.py:_published", "--base"):
        find_origin("resnest269", False, fetch=False)
    assert find_origin("resnest269", False, fetch=False, base="fcn_resnest50_ade20k").starts
