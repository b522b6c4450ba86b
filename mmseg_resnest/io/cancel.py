# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Ending long work between its steps, when nobody waits for its result any more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_cancelled: ContextVar[Callable[[], bool] | None] = ContextVar("cancelled", default=None)


class Cancelled(Exception):
    """Nobody waits for the result."""


@contextlib.contextmanager
def cancellable(cancelled: Callable[[], bool]) -> Iterator[None]:
    """What runs inside ends at its next step once ``cancelled()`` is true; in this thread alone."""
    token = _cancelled.set(cancelled)
    try:
        yield
    finally:
        _cancelled.reset(token)


def raise_if_cancelled() -> None:
    """A step of long work begins.

    Raises:
        Cancelled: The work is to end.
    """
    cancelled = _cancelled.get()
    if cancelled is not None and cancelled():
        raise Cancelled


@contextlib.contextmanager
def end_when_cancelled(end: Callable[[], object]) -> Iterator[None]:
    """For one long step: ``end()`` is called, from another thread, when the work is to end."""
    cancelled = _cancelled.get()
    if cancelled is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            if cancelled():
                end()
                return

    threading.Thread(target=watch, name="cancel", daemon=True).start()
    try:
        yield
    finally:
        done.set()
