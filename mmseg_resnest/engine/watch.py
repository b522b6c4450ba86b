# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which process of a run hangs or is gone, told by the others."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from typing import Any

from mmengine.dist import get_rank, get_world_size

from mmseg_resnest.errors import UserError

from .._stack import default_store

__all__ = ["LostProcessError", "doing", "explain_lost_processes"]

_PERIOD = 2.0
_SILENT = 5 * _PERIOD
_LOST = re.compile(
    r"Timed out waiting|timed out|timeout|closed by peer|reset by peer|Broken pipe|"
    r"Connection refused|NCCL|DistBackendError|Socket|socket",
    re.I,
)
_pulse: _Pulse | None = None


class LostProcessError(UserError):
    """Another process of the run hangs or is gone; started again, the run can go on."""


class _Pulse(threading.Thread):
    """Tells the other processes, through the launcher's store, what this one is doing."""

    def __init__(self, store: Any, rank: int, what: str = "starting") -> None:
        super().__init__(name="pulse", daemon=True)
        self._store, self._rank = store, rank
        self._doing, self._since = what, time.monotonic()

    def doing(self, what: str) -> None:
        self._doing, self._since = what, time.monotonic()

    def run(self) -> None:
        while True:
            state = {
                "doing": self._doing,
                "for": time.monotonic() - self._since,
                "at": time.time(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
            }
            try:
                self._store.set(f"pulse/{self._rank}", json.dumps(state))
            except RuntimeError:  # the store is gone, and the launcher with it
                return
            time.sleep(_PERIOD)

    def others(self) -> list[str]:
        """What is known of the other processes, the most suspicious first."""
        told = []
        for rank in range(get_world_size()):
            if rank == self._rank:
                continue
            try:
                if not self._store.check([f"pulse/{rank}"]):
                    continue
                state = json.loads(self._store.get(f"pulse/{rank}"))
            except (RuntimeError, ValueError):
                continue
            who = f"process {rank} (pid {state['pid']} on {state['host']})"
            silent = time.time() - state["at"]
            if silent > _SILENT:
                told.append((silent, f"{who} is gone since {silent:.0f} s, while {state['doing']}"))
            else:
                ago = f"{silent:.0f} s ago {who} was {state['doing']}"
                told.append((state["for"], f"{ago}, for {state['for']:.0f} s by then"))
        return [text for _, text in sorted(told, reverse=True)]


def doing(what: str) -> None:
    """Let the other processes know what this one is at; free of charge."""
    global _pulse
    if get_world_size() == 1:
        return
    if _pulse is None:
        store = default_store()
        if hasattr(store, "clone"):
            store = store.clone()  # a connection of its own: the other may be waiting
        _pulse = _Pulse(store, get_rank(), what)
        _pulse.start()
    _pulse.doing(what)


def explain_lost_processes(
    error: BaseException, then: str = "started again with --resume the run goes on"
) -> LostProcessError | None:
    """The error in words when a collective failed because of another process, otherwise None.

    Args:
        error: What was raised.
        then: What to do, to end the message.
    """
    if isinstance(error, UserError) or not isinstance(error, RuntimeError):
        return None
    if get_world_size() == 1 or not _LOST.search(str(error)):
        return None
    others = _pulse.others() if _pulse is not None else []
    first = str(error).strip().splitlines()[0][:200]
    known = "; ".join(others[:4]) or "nothing is known of the others"
    return LostProcessError(
        "input",
        f"a collective failed, another process hangs or is gone ({first})",
        f"{known}. Its own message, if it had one, says more; {then}",
    )
