# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The folders of a run belong to it for as long as it runs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mmengine.config import Config
from user_errors import raises_user_error

from mmseg_resnest.engine.run_folders import RunFolders, check_checkpoint_hook, folders_of_training
from mmseg_resnest.io.folder_lock import LOCK_FILE, FolderLock


def _config(folder: Path, **checkpoint: str) -> Config:
    return Config({"work_dir": str(folder / "run"), "default_hooks": {"checkpoint": checkpoint}})


def _folders(cfg: Config, held: contextlib.ExitStack) -> RunFolders:
    return RunFolders(folders_of_training(cfg, cfg.work_dir), held)


def _locks(folder: Path) -> list[str]:
    return sorted(p.parent.relative_to(folder).as_posix() for p in folder.rglob(LOCK_FILE))


def test_the_work_folder_is_held_until_the_end(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        folders = _folders(_config(tmp_path), held)
        assert folders.hold(make=False) == []
        assert os.listdir(tmp_path) == []
        assert folders.hold(make=True) == []
        assert folders.hold(make=True) == []
        assert _locks(tmp_path) == ["run"]
        folders.check()
    assert _locks(tmp_path) == []


def test_the_folder_of_the_checkpoints_is_held_too(tmp_path: Path) -> None:
    cfg = _config(tmp_path, out_dir=str(tmp_path / "out"))
    with contextlib.ExitStack() as held:
        _folders(cfg, held).hold(make=True)
        assert _locks(tmp_path) == ["out/run", "run"]
        # Another work folder of the same name would get its checkpoints into the same place.
        other = Config({**cfg, "work_dir": str(tmp_path / "elsewhere" / "run")})
        with (
            contextlib.ExitStack() as stack,
            raises_user_error("in-use", "default_hooks.checkpoint.out_dir"),
        ):
            _folders(other, stack).hold(make=True)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    refused = raises_user_error("in-use", f"--work-dir {tmp_path / 'run'}")
    with FolderLock(tmp_path / "run"), contextlib.ExitStack() as held, refused:
        _folders(_config(tmp_path), held).hold(make=False)


def test_a_folder_that_is_named_twice_is_held_once(tmp_path: Path) -> None:
    names = {tmp_path: "--out", tmp_path / "x" / "..": "--work-dir"}
    with contextlib.ExitStack() as held:
        RunFolders(names, held).hold(make=True)
        assert _locks(tmp_path) == ["."]


def test_a_folder_that_is_lost_is_told(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        folders = _folders(_config(tmp_path), held)
        folders.hold(make=True)
        next(iter(folders._locks.values())).lost = "--work-dir run: another process has it"
        with raises_user_error("in-use", "--work-dir"):
            folders.check()


def test_the_template_is_checked_before_the_run(tmp_path: Path) -> None:
    check_checkpoint_hook(_config(tmp_path))
    check_checkpoint_hook(_config(tmp_path, filename_tmpl="step_{}.pth"))
    check_checkpoint_hook(Config({}))
    with raises_user_error("config-value", "filename_tmpl"):
        check_checkpoint_hook(_config(tmp_path, filename_tmpl="iter.pth"))
