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
    monkeypatch.setattr(watch, "get_rank", lambda: 0)
    monkeypatch.setattr(watch.time, "time", lambda: 1e9)
    pulse = watch._Pulse(store, 0)
    monkeypatch.setattr(watch, "_pulse", pulse)
    return pulse


def _tell(pulse: watch._Pulse, rank: int, silent: float, doing: str, since: float) -> None:
    at = time.time() - silent
    state = {"doing": doing, "for": since, "at": at, "host": "h", "pid": rank + 70}
    pulse._store.set(f"pulse/{rank}", json.dumps(state))


def test_the_most_suspicious_process_comes_first(pulse: watch._Pulse) -> None:
    """Lost ones, then those that have done the same thing for longest."""
    _tell(pulse, 1, 1, "at iteration 8", 5)
    _tell(pulse, 2, 60, "at iteration 7", 1)
    error = explain_lost_processes(GLOO)
    assert isinstance(error, LostProcessError) and error.code == "ranks"
    lost = error.message.index("process 2 (pid 72 on h) is lost since 60 s, while at iteration 7")
    assert lost < error.message.index("1 s ago process 1 (pid 71 on h) was at iteration 8, for 5 s")
    _tell(pulse, 2, 2, "loading the batch of iteration 7", 300)
    text = str(explain_lost_processes(GLOO))
    assert text.index("process 2") < text.index("process 1")


def test_faults_of_the_code_are_not_explained(
    pulse: watch._Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert explain_lost_processes(GLOO) is not None  # although nothing is known of the others
    assert explain_lost_processes(RuntimeError("shapes do not match")) is None
    assert explain_lost_processes(ValueError("timed out")) is None
    assert explain_lost_processes(UserError("input", "", "timed out")) is None
    monkeypatch.setattr(watch, "get_world_size", lambda: 1)
    assert explain_lost_processes(GLOO) is None
