# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The thread that writes checkpoints gives nothing up."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from mmseg_resnest.engine import checkpoint_writer
from mmseg_resnest.engine.checkpoint_writer import CheckpointWriter, Step
from mmseg_resnest.engine.latest import verify_checkpoint
from mmseg_resnest.engine.saving import write_checkpoint

RECORD = {"meta": {"iter": 7}, "state_dict": {"w": torch.arange(3000.0)}, "text": "as it was"}


class Told:
    def __init__(self, **kw) -> None:
        self.warnings, self.news = [], []
        self.writer = CheckpointWriter(
            self.warnings.append, self.news.append, pauses=(0.02, 0.05), **kw
        )


def test_saving_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk holds nothing up; of what waits, the newest is written."""
    gate = threading.Event()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (gate.wait(60), fsync(descriptor)))
    told = Told()
    told.writer.submit("newest", RECORD, tmp_path / "iter_1.pth")
    while not list(tmp_path.glob(".*.part")):
        time.sleep(0.001)
    for number in (2, 3, 4):
        told.writer.submit("newest", RECORD, tmp_path / f"iter_{number}.pth")
    assert not list(tmp_path.glob("*.pth"))
    gate.set()
    assert told.writer.wait() == []
    assert sorted(os.listdir(tmp_path)) == ["iter_1.pth", "iter_4.pth"]
    assert told.warnings == []


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EACCES", "ESTALE"])
def test_a_failed_save_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    failures, freed = [0], []

    def fail(record: dict, path: Path, sync: bool) -> None:
        if failures[0] < 3:
            failures[0] += 1
            code = getattr(errno, number)
            raise OSError(code, os.strerror(code))
        write_checkpoint(record, path, sync)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", fail)
    told = Told()
    told.writer.use(lambda: freed.append(1))
    done = threading.Event()
    told.writer.submit("newest", RECORD, tmp_path / "iter_1.pth", [Step("", done.set)])
    assert done.wait(10)
    assert verify_checkpoint(tmp_path / "iter_1.pth") is None
    assert len(told.warnings) == 1 and "earlier checkpoints are kept" in told.warnings[0]
    assert len(freed) == 3
    told.writer.wait()
    assert len(told.news) == 1 and "works again" in told.news[0]


def test_what_cannot_be_saved_in_the_end_is_said(tmp_path: Path) -> None:
    told = Told(last_tries=2)
    told.writer.submit("newest", RECORD, tmp_path / "no" / "such" / "iter_1.pth")
    problems = told.writer.wait()
    assert len(problems) == 1 and "iter_1.pth: could not be saved" in problems[0].text
    assert problems[0].checkpoint and problems[0].needed
    assert told.writer.wait() == []


def test_a_fault_of_the_code_is_not_hidden(tmp_path: Path) -> None:
    told = Told()
    told.writer.submit("newest", {"bad": threading.Lock()}, tmp_path / "iter_1.pth")
    with pytest.raises(TypeError, match="pickle"):
        told.writer.wait()
    assert not os.listdir(tmp_path)


def _denied() -> None:
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_whole_checkpoint_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps fail and are tried again by themselves; one does not hold up the next."""
    written, tries, done = [], [], threading.Event()

    def write(record: dict, path: Path, sync: bool) -> None:
        written.append(path.name)
        write_checkpoint(record, path, sync)

    def point() -> None:
        tries.append("point")
        if tries.count("point") < 3:
            _denied()
        done.set()

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write)
    told = Told()
    steps = [Step("the pointer failed", point), Step("rotation failed", lambda: tries.append("r"))]
    told.writer.submit("newest", RECORD, tmp_path / "iter_1.pth", steps)
    assert done.wait(30)
    assert told.writer.wait() == []
    assert written == ["iter_1.pth"]
    assert tries == ["point", "r", "point", "point"]
    assert len(told.warnings) == 1
    assert "iter_1.pth is saved, but the pointer failed (Permission denied)" in told.warnings[0]
    assert len(told.news) == 1 and "the pointer failed" in told.news[0]


def test_steps_that_fail_in_the_end_are_named_apart(tmp_path: Path) -> None:
    told = Told(last_tries=2)
    steps = [Step("a failed", _denied, needed=True), Step("b failed", _denied)]
    told.writer.submit("newest", RECORD, tmp_path / "iter_1.pth", steps)
    unsaved = told.writer.wait()
    assert [(one.checkpoint, one.needed) for one in unsaved] == [(False, True), (False, False)]
    assert all("iter_1.pth is saved" in one.text for one in unsaved)
    assert verify_checkpoint(tmp_path / "iter_1.pth") is None


def test_a_folder_that_cannot_be_synced_is_its_own_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(record: dict, path: Path, sync: bool) -> None:
        written.append(path.name)
        write_checkpoint(record, path, sync)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write)
    monkeypatch.setattr(checkpoint_writer, "sync_folder", lambda folder: _denied())
    told = Told(last_tries=2)
    told.writer.submit("newest", RECORD, tmp_path / "iter_1.pth")
    assert [one.checkpoint for one in told.writer.wait()] == [False]
    assert written == ["iter_1.pth"]


def test_steps_of_an_older_checkpoint_are_left_to_the_newer(tmp_path: Path) -> None:
    told = Told()
    failed, done = threading.Event(), []

    def fail() -> None:
        failed.set()
        _denied()

    told.writer.submit("newest", RECORD, tmp_path / "iter_1.pth", [Step("old", fail)])
    assert failed.wait(30)
    told.writer.submit(
        "newest", RECORD, tmp_path / "iter_2.pth", [Step("new", lambda: done.append(2))]
    )
    assert told.writer.wait() == []
    assert done == [2]
    assert sorted(os.listdir(tmp_path)) == ["iter_1.pth", "iter_2.pth"]
