# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Signals that ask a run to stop: it finishes the step, saves, and can be resumed."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

#: Exit code of a run that was stopped from outside and can be resumed (EX_TEMPFAIL).
EXIT_AGAIN = 75

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Seconds in which signals are one request: a launcher passes on what the terminal has sent to all.
_ONE_REQUEST = 1.0

_current: StopSignals | None = None
_ends_with_run = False


class Preempted(Exception):
    """A run stopped because it was asked to; the message says how to resume it."""


def stop_signal() -> str | None:
    """Name of the signal that asked this process to stop, or None."""
    return None if _current is None else _current.received


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Have signals wait for the end of a block that forks: what a handler raises there is lost.

    For what comes before the first iteration; the training loop is not interrupted anyway.
    """
    signals = _current
    if signals is None:
        yield
        return
    signals.waiting = True
    try:
        yield
    finally:
        signals.waiting = False
    signals.end_if_asked()


def end_process_with_run() -> None:
    """Ignore more signals once a run of this process was stopped and saved, for good.

    They would spoil its exit code. For an application, whose process is about to end then.
    """
    global _ends_with_run
    _ends_with_run = True


class StopSignals:
    """A context in which SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) are requests.

    The training loop sees the first and stops at the end of a step; before :meth:`training` is
    called, the first ends the run where it is. Another one, at least a second later, ends the
    process at once. Outside the main thread the context does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._since = 0.0
        self._steps = self.waiting = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._others: set[int | None] = set()  # children that are not the run's

    def training(self) -> None:
        """From now on the training loop looks at :func:`stop_signal`.

        Raises:
            Preempted, KeyboardInterrupt: A signal came before, whose exception was lost: Python
                drops those that are raised while it frees an object or forks.
        """
        self.end_if_asked()
        self._steps = True

    def end_if_asked(self) -> None:
        """Raise for a signal that came before the first iteration."""
        if self.received is None or self._steps:
            return
        if self.received == "SIGINT":
            raise KeyboardInterrupt
        raise Preempted(f"{self.received} before the first iteration: nothing was trained")

    def __enter__(self) -> StopSignals:
        """Take over the signals."""
        global _current
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # Whoever started the process may want it to ignore a signal (nohup).
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            _current = self
        self._others = {child.pid for child in multiprocessing.active_children()}
        atexit.register(self._end_workers)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give the signals back."""
        global _current
        for number, handler in self._before.items():
            ends = _ends_with_run and kind is Preempted
            signal.signal(number, signal.SIG_IGN if ends else handler)
        _current = None
        if not self._workers():
            atexit.unregister(self._end_workers)

    def _workers(self) -> list[multiprocessing.process.BaseProcess]:
        """Workers of the run that are left."""
        children = multiprocessing.active_children()
        return [child for child in children if child.daemon and child.pid not in self._others]

    def _end_workers(self, patience: float = 5.0) -> None:
        """End the workers that are left when the process ends, those that hang after some seconds.

        Loaders end theirs when they are freed, which a traceback or a cycle may keep from
        happening. multiprocessing then sends one SIGTERM, which the workers ignore, and would wait
        forever.
        """
        end = time.monotonic() + patience
        with contextlib.suppress(RuntimeError):  # torch says so of a worker that was killed
            while workers := self._workers():
                for worker in workers:
                    if time.monotonic() < end:
                        worker.terminate()
                    else:
                        worker.kill()
                time.sleep(0.05)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child, not a data loading worker
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        name = signal.Signals(number).name
        now = time.monotonic()
        if self.received is not None:
            if now - self._since < _ONE_REQUEST:
                return
            os.write(2, f"\n{name} again: ended without saving\n".encode())
            os._exit(128 + number)
        self.received, self._since = name, now
        if not self._steps:
            if not self.waiting:
                self.end_if_asked()
            return
        if os.environ.get("RANK", "0") == "0":
            text = f"\n{name}: stopping after this step and saving; once more ends it at once\n"
            os.write(2, text.encode())


def ignore_signals_in_worker(worker_init: Any, worker: int) -> None:
    """Start a data loading worker that ignores signals that are meant for its run.

    Ctrl-C and schedulers send signals to every process of a job. A worker that ended on one would
    end the run before that has saved. The first SIGTERM may be such a signal; the second is the
    run's own. ``worker_init`` is the loader's own ``worker_init_fn``.
    """
    if _current is not None:  # of the run, which this process is a fork of
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _stay_once)
    if worker_init is not None:
        worker_init(worker)


def _stay_once(number: int, frame: FrameType | None) -> None:
    # Exit code 0, as torch's own handler: a worker that its run has ended has not failed.
    signal.signal(number, lambda *_: os._exit(0))
