# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The message about processes that differ; tests/tools/test_ranks.py runs such processes."""

from __future__ import annotations

import pytest
from user_errors import raises_user_error

from mmseg_resnest import UserError
from mmseg_resnest.engine.run_record import RunRecord
from mmseg_resnest.engine.same_run import check_same_run, describe_ranks, failing_together


def _never() -> RunRecord:
    raise AssertionError("one process has nothing to compare")


def test_equal_processes_have_no_message() -> None:
    assert describe_ranks([("a", []), ("b", []), ("b", [])]) is None
    check_same_run(_never)


def test_the_first_process_that_differs_is_described_and_others_are_counted() -> None:
    many = [f"key {i} is {i}, not 0" for i in range(9)]
    text = describe_ranks([("a", []), ("a", []), ("b", many), ("b", many[:1])])
    assert text is not None and len(text.splitlines()) == 1
    assert "process 2 on b differs from process 0 on a: key 0 is 0, not 0; " in text
    assert "key 3 is 3, not 0; and 5 more differences; and 1 more processes differ" in text
    assert "key 4" not in text


@pytest.mark.parametrize("launcher", ["none", "pytorch", "slurm"])
def test_a_process_without_others_fails_alone(
    launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No launcher, or one that set nothing: the error is the process's own, at once."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with raises_user_error("input", "my own"), failing_together(launcher):
        raise UserError("input", "my own", "is wrong")
