# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which process of a run hangs or is lost, as the others see it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_rank, get_world_size

from .._stack import default_store
from ..errors import UserError

_PERIOD = 2.0
_SILENT = 5 * _PERIOD
_LOST = re.compile(
    r"Timed out waiting|timed out|timeout|closed by peer|reset by peer|Broken pipe|"
    r"Connection refused|NCCL|DistBackendError|socket",
    re.I,
)
_pulse: _Pulse | None = None


class LostProcessError(UserError):
    """Another process of the run hangs or is lost; started again, the run can continue."""


class _Pulse(threading.Thread):
    """Tells the other processes, through the launcher's store, what this one is doing."""

    def __init__(self, store: Any, rank: int, what: str = "starting") -> None:
        super().__init__(name="pulse", daemon=True)
        self._store, self._rank = store, rank
        self.doing(what)

    def doing(self, what: str) -> None:
        self._doing, self._since = what, time.monotonic()

    def run(self) -> None:
        who = {"host": socket.gethostname(), "pid": os.getpid()}
        while True:
            state = {"doing": self._doing, "for": time.monotonic() - self._since, "at": time.time()}
            try:
                self._store.set(f"pulse/{self._rank}", json.dumps(state | who))
            except RuntimeError:  # the launcher has ended
                return
            time.sleep(_PERIOD)

    def others(self) -> list[str]:
        """What is known of the other processes, the most suspicious first."""
        found = []
        for rank in range(get_world_size()):
            try:
                if rank == self._rank or not self._store.check([f"pulse/{rank}"]):
                    continue
                state = json.loads(self._store.get(f"pulse/{rank}"))
            except (RuntimeError, ValueError):
                continue
            who = f"process {rank} (pid {state['pid']} on {state['host']})"
            silent = time.time() - state["at"]
            if silent > _SILENT:
                text = f"{who} is lost since {silent:.0f} s, while {state['doing']}"
                found.append((silent, text))
            else:
                text = f"{silent:.0f} s ago {who} was {state['doing']}"
                found.append((state["for"], f"{text}, for {state['for']:.0f} s by then"))
        return [text for _, text in sorted(found, reverse=True)]


def doing(what: str) -> None:
    """Let the other processes know what this one is doing; costs nothing."""
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


_RESUME = "the same command with --resume continues the run"


@contextlib.contextmanager
def lost_processes_explained(then: str = _RESUME) -> Iterator[None]:
    """Raise :func:`explain_lost_processes` in place of the error it explains."""
    try:
        yield
    except Exception as error:
        explained = explain_lost_processes(error, then)
        if explained is None:
            raise
        raise explained from error


def explain_lost_processes(error: BaseException, then: str = _RESUME) -> LostProcessError | None:
    """The UserError when a collective failed because of another process, otherwise None."""
    if isinstance(error, UserError) or not isinstance(error, RuntimeError):
        return None
    if get_world_size() == 1 or not _LOST.search(str(error)):
        return None
    others = _pulse.others() if _pulse is not None else []
    first = str(error).strip().splitlines()[0][:200]
    known = "; ".join(others[:4]) or "nothing is known of the others"
    return LostProcessError(
        "ranks",
        f"process {get_rank()}",
        f"a collective failed, another process hangs or is lost: {known} ({first}). Its own "
        f"message, if it printed one, says more; {then}",
    )
