# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The disk is measured before a run starts."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn
from user_errors import raises_user_error

from mmseg_resnest.engine.preflight import (
    check_device,
    check_disk_space,
    check_file,
    check_output_file,
    check_writable,
    checkpoint_folder,
)

Usage = namedtuple("Usage", "total used free")
ONE = 4 * (1000 * 1000 + 1000)  # bytes of the weights of the layer


def _cfg(folder: Path, **hook) -> Config:
    checkpoint = dict(type="CheckpointHook", interval=10, by_epoch=False, **hook)
    return Config(
        dict(
            work_dir=str(folder),
            train_cfg=dict(max_iters=40),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1.0)),
            default_hooks=dict(checkpoint=checkpoint),
        )
    )


def test_checkpoints_lie_where_the_hook_puts_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert checkpoint_folder(_cfg(folder)) == folder
    assert checkpoint_folder(_cfg(folder, out_dir=str(folder))) == folder
    assert checkpoint_folder(_cfg(folder, out_dir=str(tmp_path / "disk"))) == tmp_path / "disk/run"


@pytest.mark.parametrize(
    ("hook", "copies"),
    [
        (dict(max_keep_ckpts=2), 3 * 3),
        (dict(max_keep_ckpts=2, save_best="mIoU"), 3 * 3 + 2),
        (dict(), 3 * 5),
        (dict(max_keep_ckpts=100), 3 * 5),
    ],
)
def test_what_a_run_keeps_must_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: dict, copies: int
) -> None:
    """Weights and two of Adam's copies in each checkpoint, and one checkpoint in the making."""
    layer = nn.Linear(1000, 1000)
    for free, fits in ((copies * ONE, True), (copies * ONE - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(1, 1, free))
        if fits:
            check_disk_space(_cfg(tmp_path, **hook), layer)
        else:
            with raises_user_error("not-writable", "--work-dir"):
                check_disk_space(_cfg(tmp_path, **hook), layer)


def test_output_folders_are_made_and_checked(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "--out")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with raises_user_error("not-writable", "--out"):
        check_writable(tmp_path / "file" / "x", "--out")
    long = tmp_path / ("n" * 300)
    for check in (check_writable, check_output_file):
        with raises_user_error("not-writable", "--out"):
            check(long, "--out")
    with raises_user_error("wrong-path-type", "--out"):
        check_output_file(tmp_path / "a", "--out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file"]


def test_files_to_read(tmp_path: Path) -> None:
    (tmp_path / "best_mIoU.pth").write_bytes(b"x")
    check_file(tmp_path / "best_mIoU.pth", "checkpoint")
    with raises_user_error("wrong-path-type", "checkpoint") as failure:
        check_file(tmp_path, "checkpoint")
    assert "best_mIoU.pth" in failure.value.message
    with raises_user_error("not-found", "checkpoint") as failure:
        check_file(tmp_path / "best.pth", "checkpoint")
    assert "best_mIoU.pth" in failure.value.message


def test_devices() -> None:
    assert check_device("cpu") == torch.device("cpu")
    for name in ("cuda:77", "abacus", "meta", "mps"):
        with raises_user_error("device", name):
            check_device(name)
