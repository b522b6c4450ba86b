# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The thread that writes checkpoints retries what fails."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mmseg_resnest.engine import checkpoint_writer
from mmseg_resnest.engine.checkpoint_writer import CheckpointWriter, Step
from mmseg_resnest.engine.latest import verify_checkpoint
from mmseg_resnest.engine.saving import write_checkpoint

RECORD = {"meta": {"iter": 7}, "state_dict": {"w": torch.arange(3000.0)}, "text": "as it was"}


class Saver:
    def __init__(self, **kw: Any) -> None:
        self.warnings: list[str] = []
        self.news: list[str] = []
        self.writer = CheckpointWriter(
            self.warnings.append, self.news.append, pauses=(0.02, 0.05), **kw
        )


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were written, in order."""
    names: list[str] = []

    def write(record: dict, path: Path) -> None:
        names.append(path.name)
        write_checkpoint(record, path)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write)
    return names


def test_a_slow_disk_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the checkpoints that wait, the newest is written."""
    writing, gate = threading.Event(), threading.Event()

    def write(record: dict, path: Path) -> None:
        writing.set()
        gate.wait(60)
        write_checkpoint(record, path)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write)
    saver = Saver()
    saver.writer.submit("newest", RECORD, tmp_path / "iter_1.pth")
    assert writing.wait(60)
    for number in (2, 3, 4):
        saver.writer.submit("newest", RECORD, tmp_path / f"iter_{number}.pth")
    assert not os.listdir(tmp_path)
    gate.set()
    assert saver.writer.wait() == []
    assert sorted(os.listdir(tmp_path)) == ["iter_1.pth", "iter_4.pth"]
    assert saver.warnings == []


def test_without_drop_every_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, gate = threading.Event(), threading.Event()

    def write(record: dict, path: Path) -> None:
        writing.set()
        gate.wait(60)
        write_checkpoint(record, path)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write)
    saver = Saver()
    saver.writer.submit("newest", RECORD, tmp_path / "iter_1.pth")
    assert writing.wait(60)
    saver.writer.submit("newest", RECORD, tmp_path / "iter_2.pth", drop=False)
    threading.Timer(0.1, gate.set).start()
    saver.writer.submit("newest", RECORD, tmp_path / "iter_3.pth", drop=False)
    assert saver.writer.wait() == []
    assert sorted(os.listdir(tmp_path)) == ["iter_1.pth", "iter_2.pth", "iter_3.pth"]


def test_without_drop_a_full_disk_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", lambda *_: _denied())
    saver = Saver()
    for number in range(4):
        saver.writer.submit("newest", RECORD, tmp_path / f"iter_{number}.pth", drop=False)
    (unsaved,) = saver.writer.wait()
    assert "iter_3.pth" in unsaved.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.ESTALE])
def test_a_failed_save_is_reported_once_and_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failures, freed, done = [], [], threading.Event()

    def fail(record: dict, path: Path) -> None:
        if len(failures) < 3:
            failures.append(number)
            raise OSError(number, os.strerror(number))
        write_checkpoint(record, path)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", fail)
    saver = Saver()
    saver.writer.free = lambda: freed.append(1)
    saver.writer.submit("newest", RECORD, tmp_path / "iter_1.pth", [Step("", done.set)])
    assert done.wait(60)
    assert saver.writer.wait() == []
    assert verify_checkpoint(tmp_path / "iter_1.pth") is None
    assert len(saver.warnings) == 1 and os.strerror(number) in saver.warnings[0]
    assert len(freed) == 3
    assert len(saver.news) == 1


def test_what_cannot_be_saved_in_the_end_is_returned(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    saver = Saver(last_tries=2)
    saver.writer.submit("newest", RECORD, tmp_path / "file" / "iter_1.pth")
    (problem,) = saver.writer.wait()
    assert "iter_1.pth" in problem.text and problem.checkpoint and problem.needed
    assert saver.writer.wait() == []


def test_a_fault_of_the_code_is_not_hidden(tmp_path: Path) -> None:
    saver = Saver()
    saver.writer.submit("newest", {"bad": threading.Lock()}, tmp_path / "iter_1.pth")
    with pytest.raises(TypeError, match="pickle"):
        saver.writer.wait()
    assert not os.listdir(tmp_path)


def test_no_thread_is_left_behind(tmp_path: Path) -> None:
    before = threading.enumerate()
    saver = Saver()
    for number in (1, 2):  # what was closed can be used again
        saver.writer.submit("newest", RECORD, tmp_path / f"iter_{number}.pth")
        assert saver.writer.close() == []
        assert threading.enumerate() == before
    assert sorted(os.listdir(tmp_path)) == ["iter_1.pth", "iter_2.pth"]


def _denied() -> None:
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def test_steps_are_retried_without_writing_again(tmp_path: Path, written: list[str]) -> None:
    tries, done = [], threading.Event()

    def point() -> None:
        tries.append("point")
        if tries.count("point") < 3:
            _denied()
        done.set()

    saver = Saver()
    steps = [Step("pointing", point), Step("removing", lambda: tries.append("remove"))]
    saver.writer.submit("newest", RECORD, tmp_path / "iter_1.pth", steps)
    assert done.wait(60)
    assert saver.writer.wait() == []
    assert written == ["iter_1.pth"]
    assert tries == ["point", "remove", "point", "point"]
    assert len(saver.warnings) == 1 and "pointing failed (Permission denied)" in saver.warnings[0]
    assert len(saver.news) == 1 and "pointing" in saver.news[0]


def test_steps_that_fail_in_the_end_are_named_apart(tmp_path: Path, written: list[str]) -> None:
    saver = Saver(last_tries=2)
    steps = [Step("a", _denied, needed=True), Step("b", _denied)]
    saver.writer.submit("newest", RECORD, tmp_path / "iter_1.pth", steps)
    unsaved = saver.writer.wait()
    assert [(one.checkpoint, one.needed) for one in unsaved] == [(False, True), (False, False)]
    assert written == ["iter_1.pth"]


def test_steps_of_an_older_checkpoint_are_left_to_the_newer(tmp_path: Path) -> None:
    saver = Saver()
    failed, done = threading.Event(), []

    def fail() -> None:
        failed.set()
        _denied()

    saver.writer.submit("newest", RECORD, tmp_path / "iter_1.pth", [Step("old", fail)])
    assert failed.wait(60)
    saver.writer.submit(
        "newest", RECORD, tmp_path / "iter_2.pth", [Step("new", lambda: done.append(2))]
    )
    assert saver.writer.wait() == []
    assert done == [2]
    assert sorted(os.listdir(tmp_path)) == ["iter_1.pth", "iter_2.pth"]
