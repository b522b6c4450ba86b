# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Atomic writes: a file is complete or does not exist."""

import os
from pathlib import Path

import pytest
from user_errors import raises_user_error

from mmseg_resnest.errors import UserError
from mmseg_resnest.io.atomic import atomic_open, atomic_write


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "x.txt"
    atomic_write(path, "höhe\n")
    assert path.read_bytes() == "höhe\n".encode()
    before = os.umask(0o027)
    try:
        with atomic_open(path, sync=True) as file:
            file.write(b"other")
            file.flush()
            assert Path(file.name).read_bytes() == b"other"
            assert path.read_text(encoding="utf-8") == "höhe\n"  # the old one until the end
    finally:
        os.umask(before)
    assert path.read_bytes() == b"other"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == ["x.txt"]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), UserError("input", "", "")])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_open(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_disk_that_is_full_is_told_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with raises_user_error("not-writable", tmp_path / "x"):
        atomic_write(tmp_path / "x", b"new")
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    atomic_write(tmp_path / "file", b"")
    with raises_user_error("not-writable", "x"):
        atomic_write(tmp_path / "file" / "x", b"")
    atomic_write(tmp_path / "folder" / "x", b"")
    with raises_user_error("not-writable", "folder"):
        atomic_write(tmp_path / "folder", b"")


@pytest.mark.parametrize("name", ["n" * 255, "字" * 85, ".hidden", "a b\nc"])
def test_any_name_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    atomic_write(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]
