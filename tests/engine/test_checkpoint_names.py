# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A run removes files of its own names, and no others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from user_errors import raises_user_error

from mmseg_resnest.engine.checkpoint_names import CheckpointNames, remove_parts

NAMES = CheckpointNames("iter_{}.pth")


@given(step=st.integers(0, 10**12), template=st.sampled_from(
    ["iter_{}.pth", "{}.pth", "a{0}b.pth", "step-{:06d}.pth", "{:d}x.pth", "é_{}.pth"]
))  # fmt: skip
def test_own_names_are_known(step: int, template: str) -> None:
    names = CheckpointNames(template)
    name = names.numbered(step)
    assert names.step_of(name) == step
    best = names.best("val/mIoU", step)
    assert "/" not in best
    for key in ("val/mIoU", "auto"):
        assert names.is_best(best, key)
    assert not names.is_best(best, "mAcc")
    for whole in (name, best, "last_checkpoint"):
        assert names.is_part(f".{whole}.4711.part")


@pytest.mark.parametrize(
    "name",
    [
        "iter_4.pth.bak", "iter_-4.pth", "iter_+4.pth", "iter_4_.pth", "iter_04.pth", "iter_ 4.pth",
        "iter_.pth", "iter_²4.pth", "iter_٤.pth", "xiter_4.pth", "iter_4.pth\n", "../iter_4.pth",
        "iter_1e3.pth", "iter_4xpth", f"iter_{'9' * 5000}.pth", "best_mIoU_iter_4.pth", "",
    ],
)  # fmt: skip
def test_other_names_are_not(name: str) -> None:
    assert NAMES.step_of(name) is None
    assert not NAMES.is_best(f"best_mAcc_{name}", "mIoU")
    assert not NAMES.is_best(name, "other")


@given(st.text(max_size=30))
def test_any_name_has_an_answer(name: str) -> None:
    step = NAMES.step_of(name)
    assert step is None or NAMES.numbered(step) == name
    assert NAMES.is_part(f".{name}.1.part") in (True, False)


@pytest.mark.parametrize(
    "template",
    [
        "iter.pth", "iter_{}_{}.pth", "{}/iter.pth", "../iter_{}.pth", "/tmp/iter_{}.pth",
        "iter_{}\\x.pth", "iter_{", "iter_}.pth", "iter_{x}.pth", "iter_{1}.pth", "iter_{!r}.pth",
        "iter_{0.real}.pth", "iter_{:>9}.pth", "iter_{:{}}.pth", "iter_{:9999999999d}.pth",
        "iter_{}.pt", "iter_{}", ".iter_{}.pth", "best_{}.pth", "iter\n_{}.pth", "iter\0_{}.pth",
        "x" * 200 + "{}.pth", "{{{}}}.pth", "", 7, ["iter_{}.pth"], b"iter_{}.pth",
    ],
)  # fmt: skip
def test_invalid_templates_are_refused(template: Any) -> None:
    with raises_user_error("config-value", "default_hooks.checkpoint.filename_tmpl"):
        CheckpointNames(template)


def test_only_own_left_over_parts_are_removed(tmp_path: Path) -> None:
    ours = [
        ".iter_4.pth.123.part",
        ".best_mIoU_iter_4.pth.0a1b2c3d.part",
        ".last_checkpoint.1.part",
    ]
    others = [
        ".resnest.zip.part", ".notes.txt.123.part", ".iter_4.pth.part", ".iter_x.pth.1.part",
        ".iter_4.pth.123456789.part", ".iter_4.pth.1.part.part", "iter_4.pth.1.part",
        ".iter_4.pth.xyz.part", ".last_checkpoints.1.part",
    ]  # fmt: skip
    for name in ours + others:
        (tmp_path / name).write_text(name)
    (tmp_path / ".iter_5.pth.1.part").mkdir()
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / ".iter_6.pth.1.part").symlink_to(target)
    assert sorted(remove_parts([tmp_path, tmp_path], NAMES)) == sorted(ours)
    left = {*others, ".iter_5.pth.1.part", "precious", ".iter_6.pth.1.part"}
    assert set(os.listdir(tmp_path)) == left
