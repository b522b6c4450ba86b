# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What is said about other processes when a collective fails."""

from __future__ import annotations

import json
import time

import pytest
import torch.distributed as dist

from mmseg_resnest.engine import watch
from mmseg_resnest.engine.watch import LostProcessError, explain_lost_processes
from mmseg_resnest.errors import UserError

GLOO = RuntimeError("[gloo/unbound_buffer.cc:78] Timed out waiting 6000ms for recv operation")


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch) -> watch._Pulse:
    """Process 0 of 3, whose store knows of the two others."""
    store = dist.HashStore()
    monkeypatch.setattr(watch, "get_world_size", lambda: 3)
    pulse = watch._Pulse(store, 0)
    monkeypatch.setattr(watch, "_pulse", pulse)
    return pulse


def _tell(pulse: watch._Pulse, rank: int, silent: float, doing: str, since: float) -> None:
    state = {
        "doing": doing,
        "for": since,
        "at": time.time() - silent,
        "host": "h",
        "pid": rank + 70,
    }
    pulse._store.set(f"pulse/{rank}", json.dumps(state))


def test_who_is_gone_comes_first(pulse: watch._Pulse) -> None:
    _tell(pulse, 1, 1, "at iteration 8", 5)
    _tell(pulse, 2, 60, "at iteration 7", 1)
    told = explain_lost_processes(GLOO)
    assert isinstance(told, LostProcessError)
    text = str(told)
    gone = text.index("process 2 (pid 72 on h) is gone since 60 s, while at iteration 7")
    assert gone < text.index("1 s ago process 1 (pid 71 on h) was at iteration 8, for 5 s by then")


def test_who_has_been_at_it_longest_comes_first(pulse: watch._Pulse) -> None:
    _tell(pulse, 1, 1, "at iteration 8", 5)
    _tell(pulse, 2, 2, "loading the batch of iteration 7", 300)
    text = str(explain_lost_processes(GLOO))
    assert text.index("process 2") < text.index("process 1")


def test_one_that_has_told_nothing(pulse: watch._Pulse) -> None:
    assert "nothing is known of the others" in str(explain_lost_processes(GLOO))


def test_faults_of_the_code_stay_what_they_are(
    pulse: watch._Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert explain_lost_processes(RuntimeError("shapes do not match")) is None
    assert explain_lost_processes(ValueError("timed out")) is None
    assert explain_lost_processes(UserError("timed out")) is None
    monkeypatch.setattr(watch, "get_world_size", lambda: 1)
    assert explain_lost_processes(GLOO) is None
