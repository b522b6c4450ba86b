# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checkpoint files are written atomically, and corrupt ones are detected."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from user_errors import raises_user_error

from mmseg_resnest.engine.checkpoint_schema import restore_histories
from mmseg_resnest.engine.checkpoint_values import Refusal
from mmseg_resnest.engine.latest import verify_checkpoint
from mmseg_resnest.engine.saving import point_to, snapshot, write_checkpoint
from mmseg_resnest.weights import load_training_checkpoint

RECORD = {
    "meta": {"iter": 7, "run_id": "0123456789abcdef", "start": 2},
    "state_dict": {"w": torch.arange(3000.0)},
    "text": "as it was",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "iter_7.pth"
    write_checkpoint(RECORD, path)
    return path


def test_a_file_is_read_by_torch_alone(checkpoint: Path) -> None:
    for options in ({}, {"mmap": True}):
        record = torch.load(checkpoint, weights_only=True, **options)
        assert torch.equal(record["state_dict"]["w"], RECORD["state_dict"]["w"])
        assert record["text"] == "as it was"
    assert load_training_checkpoint(checkpoint)["meta"] == RECORD["meta"]
    assert verify_checkpoint(checkpoint) is None


@given(st.data())
def test_truncation_and_changes_are_detected(checkpoint: Path, data: st.DataObject) -> None:
    """A change that no checksum covers, such as one of a date, leaves all data as they were."""
    content = checkpoint.read_bytes()
    broken = checkpoint.with_name("broken.pth")
    if data.draw(st.booleans()):
        broken.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        assert verify_checkpoint(broken) is not None
        return
    at = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[at] ^= data.draw(st.integers(1, 255))
    broken.write_bytes(changed)
    if verify_checkpoint(broken) is None:
        record = load_training_checkpoint(broken)
        assert torch.equal(record["state_dict"]["w"], RECORD["state_dict"]["w"])
        assert (record["meta"], record["text"]) == (RECORD["meta"], RECORD["text"])


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
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, after: int) -> None:
    path = tmp_path / "iter_7.pth"
    write_checkpoint(RECORD, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, limits[1]))  # as a full disk
    try:
        with raises_user_error("not-writable", path):
            write_checkpoint({**RECORD, "more": torch.ones(9)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["iter_7.pth"]


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
