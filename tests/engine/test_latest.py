# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The checkpoint that a run continues from: by progress, whatever the clock says."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import make_runner

from mmseg_resnest.engine import saving
from mmseg_resnest.engine.latest import latest_valid_checkpoint, next_start, verify_checkpoint
from mmseg_resnest.engine.saving import MAGIC, point_to, write_checkpoint

A, B = "a" * 32, "b" * 32
CLOCKS = st.floats(-1e9, 4e9)


class Clock:
    """Stands for the module ``time`` in the one that writes checkpoints."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock."""
    clock = Clock()
    monkeypatch.setattr(saving, "time", clock)
    return lambda now: setattr(clock, "now", now)


def write(folder: Path, name: str, iteration: int, run: str = A, start: int = 1) -> Path:
    meta = {"iter": iteration, "run_id": run, "start": start}
    folder.mkdir(exist_ok=True)
    write_checkpoint({"meta": meta, "state_dict": {"w": torch.ones(9)}}, folder / name)
    return folder / name


def latest(folder: Path) -> str | None:
    path = latest_valid_checkpoint(folder)[0]
    return path and path.name


def test_within_a_run_the_iteration_counts(tmp_path: Path, at) -> None:
    for number, now in ((2, 5e9), (10, 1e9), (4, 2e9)):
        at(now)
        write(tmp_path, f"iter_{number}.pth", number)
    assert latest(tmp_path) == "iter_10.pth"
    point_to(tmp_path / "iter_4.pth", tmp_path)  # a pointer that could not be written since
    assert latest(tmp_path) == "iter_10.pth"
    write(tmp_path, "epoch_2.pth", 200)  # whatever the form of the name
    assert latest(tmp_path) == "epoch_2.pth"


def test_a_new_run_in_the_folder_of_an_old_one_continues(tmp_path: Path, at) -> None:
    """Its clock is behind the old one's, and its pointer may be missing."""
    at(4e9)
    write(tmp_path, "iter_10.pth", 10)
    at(1e9)
    write(tmp_path, "iter_2.pth", 2, B, next_start(tmp_path))
    assert latest(tmp_path) == "iter_2.pth"
    # Unless the older one is continued by name: the pointer says so before its first checkpoint.
    point_to(tmp_path / "iter_10.pth", tmp_path)
    assert latest(tmp_path) == "iter_10.pth"


def test_a_run_that_was_taken_back_stays_so(tmp_path: Path) -> None:
    """Continued by name from an older checkpoint, it does not go on from what came after that."""
    for number in (4, 8):
        write(tmp_path, f"iter_{number}.pth", number, start=1)
    write(tmp_path, "iter_6.pth", 6, start=2)
    assert latest(tmp_path) == "iter_6.pth"


def test_without_numbers_time_decides_between_runs(tmp_path: Path, at) -> None:
    at(3e9)
    write(tmp_path, "x_4.pth", 4, A)
    at(2e9)
    write(tmp_path, "x_6.pth", 6, B)
    assert latest(tmp_path) == "x_4.pth"


def test_corrupt_files_are_skipped_with_reasons(tmp_path: Path) -> None:
    for number in (2, 4, 6, 8, 10):
        write(tmp_path, f"iter_{number}.pth", number)
    point_to(tmp_path / "iter_10.pth", tmp_path)
    write(tmp_path, "best_mIoU_iter_12.pth", 12)
    os.truncate(tmp_path / "iter_10.pth", 900)
    content = bytearray((tmp_path / "iter_8.pth").read_bytes())
    content[content.index(b"\x00\x00\x80?" * 9)] ^= 1
    (tmp_path / "iter_8.pth").write_bytes(content)
    (tmp_path / "iter_11.pth").mkdir()
    newest, skipped = latest_valid_checkpoint(tmp_path)
    assert newest == tmp_path / "iter_6.pth"
    reasons = {path.name: reason for path, reason in skipped}
    assert list(reasons) == ["iter_10.pth", "iter_8.pth"]
    assert "truncated" in reasons["iter_10.pth"] and "checksum" in reasons["iter_8.pth"]
    assert latest_valid_checkpoint(tmp_path / "nothing") == (None, [])


def test_files_of_other_programs_count_too(tmp_path: Path) -> None:
    for number in (3, 12):
        torch.save({"n": torch.ones(3000)}, tmp_path / f"iter_{number}.pth")
    assert latest(tmp_path) == "iter_12.pth"
    # Of which run they are is not known: the pointer is their best witness.
    point_to(tmp_path / "iter_3.pth", tmp_path)
    assert latest(tmp_path) == "iter_3.pth"
    content = bytearray((tmp_path / "iter_3.pth").read_bytes())
    content[5000] ^= 1
    (tmp_path / "iter_3.pth").write_bytes(content)
    assert "is corrupt" in str(verify_checkpoint(tmp_path / "iter_3.pth"))
    assert latest(tmp_path) == "iter_12.pth"
    # A run of this version began after them.
    write(tmp_path, "iter_1.pth", 1)
    (tmp_path / "last_checkpoint").unlink()
    assert latest(tmp_path) == "iter_1.pth"


def _with_comment(path: Path, note: object) -> Path:
    torch.save({"n": torch.ones(9)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = MAGIC + (note if isinstance(note, bytes) else json.dumps(note).encode())
    return path


@pytest.mark.parametrize(
    "note",
    [
        {"saved": 1.0, "iteration": 10**400}, {"saved": "1", "iteration": 1}, {"iteration": 1},
        {"saved": 1.0, "iteration": 9, "run_id": "../x", "start": 9}, {"saved": float("nan")},
        {"saved": 1.0, "iteration": -1}, [], b"[" * 1000, b"\xff",
    ],
)  # fmt: skip
def test_a_comment_of_another_kind_says_nothing(tmp_path: Path, note: object) -> None:
    _with_comment(tmp_path / "iter_2.pth", note)
    write(tmp_path, "iter_1.pth", 1)
    assert latest(tmp_path) == "iter_1.pth"
    assert next_start(tmp_path) == 2


def test_files_of_older_versions_are_valid_and_ordered_by_iteration(tmp_path: Path) -> None:
    """Their comments held a SHA-256 too, and no identity."""
    for number, saved in ((4, 9.0), (12, 3.0)):
        note = {"sha256": "0" * 64, "iteration": number, "saved": saved}
        path = _with_comment(tmp_path / f"iter_{number}.pth", note)
        assert verify_checkpoint(path) is None
    assert latest(tmp_path) == "iter_12.pth"


@given(data=st.data())
def test_under_any_clocks_a_run_that_is_killed_again_and_again_ends(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A folder with an old run; each start saves a few times under a clock of its own."""
    folder = tmp_path_factory.mktemp("run")
    goal, run, reached = 12, "", 0
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(saving, "time", clock)
        clock.now = data.draw(CLOCKS)
        for number in data.draw(st.lists(st.integers(1, 30), max_size=3)):
            write(folder, f"iter_{number}.pth", number, A, 1)
        starts = 0
        while reached < goal:
            starts += 1
            assert starts <= 30
            start, iteration = next_start(folder), 0
            if run:
                newest, skipped = latest_valid_checkpoint(folder)
                assert newest is not None and not skipped
                record = torch.load(newest, weights_only=True)["meta"]
                assert (record["run_id"], record["iter"]) == (run, reached)
                iteration = reached
            else:  # begun anew: CheckpointHook takes the pointer away
                (folder / "last_checkpoint").unlink(missing_ok=True)
                run = B
            for _ in range(data.draw(st.integers(1, 3))):
                clock.now = data.draw(CLOCKS)
                iteration += 1
                path = write(folder, f"iter_{iteration}.pth", iteration, run, start)
                if data.draw(st.booleans()):  # killed in between, or the pointer fails
                    point_to(path, folder)
                reached = iteration


def test_the_pointer_is_in_the_work_folder(tmp_path: Path) -> None:
    """Where ``out_dir`` of CheckpointHook is another one."""
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    write(tmp_path, "iter_4.pth", 4, A, 1)
    write(tmp_path, "iter_2.pth", 2, B, 2)
    best = write(tmp_path, "best_mIoU_iter_8.pth", 8)
    for pointed, found in ((None, "iter_2.pth"), (best, "iter_2.pth"), ("iter_4.pth",) * 2):
        if pointed is not None:
            point_to(tmp_path / pointed, work_dir)
        assert latest_valid_checkpoint(tmp_path, work_dir)[0] == tmp_path / found


def test_a_runner_that_resumes_finds_its_checkpoint(tmp_path: Path) -> None:
    make_runner(tmp_path, iterations=3).train()
    runner = make_runner(tmp_path, iterations=6)
    runner._resume = True
    runner.train()
    assert torch.load(tmp_path / "iter_6.pth", weights_only=True)["meta"]["start"] == 2


def test_a_run_keeps_its_identity_and_numbers_its_starts(tmp_path: Path, at) -> None:
    def meta(name: str) -> dict:
        return torch.load(tmp_path / name, weights_only=True)["meta"]

    at(4e9)
    make_runner(tmp_path, iterations=3).train()
    first = meta("iter_3.pth")
    at(1e9)
    make_runner(tmp_path, iterations=6, resume=tmp_path / "iter_3.pth").train()
    second = meta("iter_6.pth")
    assert second["run_id"] == first["run_id"]
    assert (first["start"], second["start"]) == (1, 2)
    assert latest(tmp_path) == "iter_6.pth"
    at(5e8)
    make_runner(tmp_path, iterations=3).train()
    third = meta("iter_3.pth")
    assert third["run_id"] != first["run_id"]
    assert third["start"] == 3
    assert latest(tmp_path) == "iter_3.pth"


def test_a_pointer_counts_by_the_name_of_its_file_alone(tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    write(folder, "iter_4.pth", 4)
    outside = write(other, "iter_9.pth", 9, start=9)
    (folder / "iter_9.pth").symlink_to(outside)
    assert next_start(folder) == 2
    point_to(outside, folder)
    assert latest_valid_checkpoint(folder) == (folder / "iter_4.pth", [])
    write(folder, "iter_2.pth", 2, B)
    point_to(other / "iter_2.pth", folder)
    (tmp_path / "link").symlink_to(folder)  # the folder itself may be one
    for place in (folder, tmp_path / "link"):
        assert latest_valid_checkpoint(place)[0] == place / "iter_2.pth"


def test_an_archive_that_no_loader_takes_is_not_valid(tmp_path: Path) -> None:
    torch.save({"n": torch.ones(3000)}, tmp_path / "plain.pth")
    assert verify_checkpoint(tmp_path / "plain.pth") is None
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    assert "compressed" in str(verify_checkpoint(tmp_path / "packed.pth"))
    (tmp_path / "before.pth").write_bytes(b"#!/bin/sh\n" + (tmp_path / "plain.pth").read_bytes())
    assert verify_checkpoint(tmp_path / "before.pth") is not None
