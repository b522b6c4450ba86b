# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The thread that writes a run's checkpoints."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .saving import write_checkpoint

__all__ = ["CheckpointWriter"]

#: What a full disk, a quota, a permission or a network mount says; it may be over soon.
PASSING = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        *(errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ESTALE, errno.EIO, errno.ENOENT, errno.ETIMEDOUT, errno.EBUSY, errno.EAGAIN),
    }
)


@dataclass
class _Job:
    record: Mapping[str, Any]
    path: Path
    done: Callable[[], None]
    tries: int = 0
    not_before: float = 0.0


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time, and tries again those that fail.

    Of each kind of checkpoint only the newest waits: training is never held up, and no more than
    one copy of each kind is kept beside the one being written.

    Args:
        warn: Told once when writing starts to fail, and of what cannot be written at all.
        inform: Told when it works again.
        pauses: Seconds before the second, third, ... try; the last one repeats.
        last_tries: How often a checkpoint is tried in :meth:`wait` before it is given up.
    """

    def __init__(
        self,
        warn: Callable[[str], None],
        inform: Callable[[str], None] = lambda text: None,
        pauses: tuple[float, ...] = (1.0, 5.0, 15.0, 60.0),
        last_tries: int = 3,
    ) -> None:
        self._warn, self._inform = warn, inform
        self._free: Callable[[], None] = lambda: None
        self._pauses, self._last_tries = pauses, last_tries
        self._pending: dict[str, _Job] = {}
        self._busy = False
        self._failing = False
        self._draining = False
        self._given_up: list[str] = []
        self._fault: BaseException | None = None
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None

    def use(self, free: Callable[[], None]) -> None:
        """Set what is called after a failure, to remove what nobody needs."""
        self._free = free

    def submit(
        self,
        kind: str,
        record: Mapping[str, Any],
        path: Path,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Hand over a checkpoint; returns at once.

        Args:
            kind: One that still waits and has the same kind is dropped for this one.
            record: A :func:`snapshot`.
            path: The file.
            done: Called in the thread when the file is whole.
        """
        with self._condition:
            self._raise_fault()
            dropped = self._pending.pop(kind, None)
            if dropped is not None and dropped.path != path:
                self._inform(f"{dropped.path.name} was not written: {path.name} is newer")
            self._pending[kind] = _Job(record, path, done)  # last: those before it go first
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def wait(self) -> list[str]:
        """Wait until all is written; returns what could not be, in words."""
        with self._condition:
            self._draining = True
            for job in self._pending.values():
                job.tries = 0
            self._condition.notify_all()
            while (self._pending or self._busy) and self._fault is None:
                self._condition.wait()
            self._draining = False
            self._raise_fault()
            given_up, self._given_up = self._given_up, []
            return given_up

    def _raise_fault(self) -> None:
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def _run(self) -> None:
        while True:
            with self._condition:
                kind, job = self._next()
                del self._pending[kind]
                self._busy = True
            error: BaseException | None = None
            try:
                write_checkpoint(job.record, job.path)
                job.done()
            except BaseException as problem:
                error = problem
            with self._condition:
                self._busy = False
                self._settle(kind, job, error)
                self._condition.notify_all()
            del job

    def _next(self) -> tuple[str, _Job]:
        """The first job whose time has come; waits for one."""
        while True:
            now = time.monotonic()
            for kind, job in self._pending.items():
                if job.not_before <= now:
                    return kind, job
            soonest = min((j.not_before for j in self._pending.values()), default=None)
            self._condition.wait(None if soonest is None else soonest - now)

    def _settle(self, kind: str, job: _Job, error: BaseException | None) -> None:
        if error is None:
            if self._failing:
                self._inform(f"{job.path.name} was written: saving works again")
            self._failing = False
            return
        if not isinstance(error, OSError) or error.errno not in PASSING:
            self._fault = error
            return
        text = f"{job.path}: could not be saved ({error.strerror})"
        if not self._failing:
            self._failing = True
            self._warn(f"{text}; earlier checkpoints are kept, and saving is tried again")
        with contextlib.suppress(OSError):
            self._free()
        job.tries += 1
        if kind in self._pending:  # a newer one waits
            return
        if self._draining and job.tries >= self._last_tries:
            self._given_up.append(text)
            return
        pause = self._pauses[min(job.tries, len(self._pauses)) - 1]
        job.not_before = time.monotonic() + pause
        self._pending = {kind: job, **self._pending}
