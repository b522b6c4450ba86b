# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checkpoint files are whole or not there, and the thread that writes them gives nothing up."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer

from mmseg_resnest.engine import saving
from mmseg_resnest.engine.checkpoint_schema import restore_histories
from mmseg_resnest.engine.checkpoint_values import Refusal
from mmseg_resnest.engine.latest import verify_checkpoint
from mmseg_resnest.engine.saving import (
    CheckpointWriter,
    point_to,
    remove_parts,
    snapshot,
    write_checkpoint,
)
from mmseg_resnest.weights import load_training_checkpoint

RECORD = {
    "meta": {"iter": 7, "run_id": "0123456789abcdef", "start": 2},
    "state_dict": {"w": torch.arange(3000.0)},
    "text": "as it was",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "iter_7.pth"
    write_checkpoint(RECORD, path)
    return path


def test_a_file_is_read_by_torch_alone(whole: Path) -> None:
    for options in ({}, {"mmap": True}):
        record = torch.load(whole, weights_only=True, **options)
        assert torch.equal(record["state_dict"]["w"], RECORD["state_dict"]["w"])
        assert record["text"] == "as it was"
    assert load_training_checkpoint(whole)["meta"] == RECORD["meta"]
    assert verify_checkpoint(whole) is None


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_whatever_is_missing_or_changed_is_seen(whole: Path, data: st.DataObject) -> None:
    content = whole.read_bytes()
    broken = whole.with_name("broken.pth")
    if data.draw(st.booleans()):
        broken.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        flip = data.draw(st.integers(1, 255))
        changed = bytearray(content)
        changed[at] ^= flip
        broken.write_bytes(changed)
    assert verify_checkpoint(broken) is not None


@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_users_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_checkpoint(RECORD, tmp_path / "a.pth")
        point_to(tmp_path / "a.pth", tmp_path)
    finally:
        os.umask(before)
    for name in ("a.pth", "last_checkpoint"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("after", [0, 1, 5000, 12_000])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    path = tmp_path / "iter_7.pth"
    write_checkpoint(RECORD, path)
    before = path.read_bytes()
    write, written = os.write, [0]

    def full(descriptor: int, data: bytes) -> int:
        if written[0] + len(data) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        written[0] += len(data)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint({**RECORD, "more": torch.ones(9)}, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["iter_7.pth"]


def test_traces_of_an_interrupted_write_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".iter_4.pth.123.part").write_bytes(b"half")
    assert remove_parts(tmp_path) == [".iter_4.pth.123.part"]
    assert not os.listdir(tmp_path)


def test_a_snapshot_is_a_copy_of_plain_data() -> None:
    shared = torch.ones(3)
    buffer = HistoryBuffer([1.5, float("nan")], [1, 2], max_length=9)
    record = {"a": shared, "b": [shared, (1, shared)], "n": np.float64(2.5)}
    record["message_hub"] = {"log_scalars": {"loss": buffer}}
    copy = snapshot(record)
    shared.add_(1)
    buffer.update(7.0)
    assert torch.equal(copy["a"], torch.ones(3))
    assert copy["a"] is copy["b"][0] is copy["b"][1][1]
    assert type(copy["n"]) is float
    back = restore_histories(copy["message_hub"]["log_scalars"], Refusal("a.pth"))["loss"]
    assert np.array_equal(back.data[0], [1.5, np.nan], equal_nan=True)
    assert back.data[1].tolist() == [1, 2]
    assert back.max_length == 9


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
    monkeypatch.setattr(os, "fsync", lambda descriptor: (gate.wait(10), fsync(descriptor)))
    told = Told()
    start = time.perf_counter()
    told.writer.submit("newest", RECORD, tmp_path / "iter_1.pth")
    while not list(tmp_path.glob(".*.part")):
        time.sleep(0.001)
    for number in (2, 3, 4):
        told.writer.submit("newest", RECORD, tmp_path / f"iter_{number}.pth")
    assert time.perf_counter() - start < 5
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

    def fail(record: dict, path: Path) -> None:
        if failures[0] < 3:
            failures[0] += 1
            code = getattr(errno, number)
            raise OSError(code, os.strerror(code))
        write(record, path)

    write = write_checkpoint
    monkeypatch.setattr(saving, "write_checkpoint", fail)
    told = Told()
    told.writer.use(lambda: freed.append(1))
    done = threading.Event()
    told.writer.submit("newest", RECORD, tmp_path / "iter_1.pth", done.set)
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
    assert len(problems) == 1 and "iter_1.pth: could not be saved" in problems[0]
    assert told.writer.wait() == []


def test_a_fault_of_the_code_is_not_hidden(tmp_path: Path) -> None:
    told = Told()
    told.writer.submit("newest", {"bad": threading.Lock()}, tmp_path / "iter_1.pth")
    with pytest.raises(TypeError, match="pickle"):
        told.writer.wait()
    assert not os.listdir(tmp_path)
