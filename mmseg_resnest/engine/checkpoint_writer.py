# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The thread that writes a run's checkpoints."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, reason
from .saving import write_checkpoint


@dataclass(frozen=True)
class Step:
    """A step of saving a checkpoint."""

    name: str  # for messages, as "removing older checkpoints"
    run: Callable[[], None]  # called again after an OSError or UserError
    needed: bool = False  # whether a run that could not do it has failed
    checkpoint: bool = False  # whether it writes the file, for which the steps after it wait


@dataclass(frozen=True)
class Unsaved:
    """What could not be done in the end."""

    text: str  # what and why
    checkpoint: bool  # whether a checkpoint was not written
    needed: bool  # whether the run has failed therefore


@dataclass
class _Job:
    path: Path
    steps: list[Step]
    tries: int = 0
    not_before: float = 0.0


_Failed = list[tuple[Step, str]]


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time, and retries what fails.

    Of each kind of checkpoint only the newest waits, so training is not held up, and at most one
    copy of each kind is kept beside the one being written. What follows a write is retried step by
    step, without writing the file again.

    ``warn`` is called once when something starts to fail, ``inform`` when it works again.
    ``pauses`` are seconds before the second, third, ... try, of which the last repeats;
    ``last_tries`` are the tries in :meth:`wait`.
    """

    def __init__(
        self,
        warn: Callable[[str], None],
        inform: Callable[[str], None] = lambda text: None,
        pauses: tuple[float, ...] = (1.0, 5.0, 15.0, 60.0),
        last_tries: int = 3,
    ) -> None:
        self._warn, self._inform = warn, inform
        #: Called after a failed write, to remove what nobody needs.
        self.free: Callable[[], None] = lambda: None
        self._pauses, self._last_tries = pauses, last_tries
        self._pending: dict[str, _Job] = {}
        self._busy = False
        self._failing: set[str] = set()
        self._draining = self._closed = False
        self._given_up: list[Unsaved] = []
        self._fault: BaseException | None = None
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(
        self,
        kind: str,
        record: Mapping[str, Any],
        path: Path,
        steps: Sequence[Step] = (),
        drop: bool = True,
    ) -> None:
        """Hand over a snapshot and the steps that follow its writing.

        A waiting checkpoint of the same kind is dropped for this one, and the call returns at once.
        Without ``drop`` it waits until that one has been tried. A step that fails does not keep
        the next from being done.
        """
        save = Step("saving", lambda: write_checkpoint(record, path), True, checkpoint=True)
        with self._condition:
            self._raise_fault()
            while not drop and (before := self._pending.get(kind)) and not before.tries:
                self._condition.wait()
                self._raise_fault()
            dropped = self._pending.pop(kind, None)
            if dropped is not None and dropped.steps[0].checkpoint and dropped.path != path:
                self._inform(f"{dropped.path.name} was not written: {path.name} is newer")
            self._pending[kind] = _Job(path, [save, *steps])  # last: others go first
            if self._thread is None:
                self._closed = False
                self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def wait(self) -> list[Unsaved]:
        """Wait until all is done; returns what could not be."""
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

    def close(self) -> list[Unsaved]:
        """As :meth:`wait`, and end the thread, which holds what it was given."""
        thread = self._thread
        try:
            unsaved = self.wait()
        finally:
            with self._condition:
                self._closed, self._thread = True, None
                self._condition.notify_all()
        if thread is not None:
            thread.join()
        return unsaved

    def _raise_fault(self) -> None:
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def _run(self) -> None:
        while True:
            with self._condition:
                found = self._next()
                if found is None:
                    return
                kind, job = found
                del self._pending[kind]
                self._busy = True
            failed: _Failed = []
            fault: BaseException | None = None
            try:
                failed = self._do(job)
            except BaseException as error:
                fault = error
            with self._condition:
                self._busy = False
                self._fault = self._fault or fault
                if failed:
                    self._retry(kind, job, failed)
                self._condition.notify_all()
            del job, found

    def _do(self, job: _Job) -> _Failed:
        """Do the steps of a job; returns those that failed, which are left in the job."""
        failed: _Failed = []
        for step in list(job.steps):
            try:
                step.run()
            except (OSError, UserError) as error:
                failed.append((step, f"{job.path}: {step.name} failed ({_cause(error)})"))
                if step.name not in self._failing:
                    self._failing.add(step.name)
                    self._warn(f"{failed[-1][1]}; it is retried, and earlier checkpoints are kept")
                if step.checkpoint:
                    with contextlib.suppress(OSError):
                        self.free()
                    break
            else:
                job.steps.remove(step)
                if step.checkpoint:
                    job.tries = 0
                if step.name in self._failing:
                    self._failing.remove(step.name)
                    self._inform(f"{job.path}: {step.name} works again")
        return failed

    def _next(self) -> tuple[str, _Job] | None:
        """The first job whose time has come; waits for one. None: the writer is closed."""
        while not self._closed:
            now = time.monotonic()
            for kind, job in self._pending.items():
                if job.not_before <= now:
                    return kind, job
            soonest = min((j.not_before for j in self._pending.values()), default=None)
            self._condition.wait(None if soonest is None else soonest - now)
        return None

    def _retry(self, kind: str, job: _Job, failed: _Failed) -> None:
        job.tries += 1
        if kind in self._pending:  # a newer one waits
            return
        if self._draining and job.tries >= self._last_tries:
            self._given_up += [Unsaved(text, s.checkpoint, s.needed) for s, text in failed]
            return
        pause = self._pauses[min(job.tries, len(self._pauses)) - 1]
        job.not_before = time.monotonic() + pause
        self._pending = {kind: job, **self._pending}


def _cause(error: OSError | UserError) -> str:
    """The system's reason of a failed write."""
    system = error.__cause__ if isinstance(error, UserError) else error
    return (system.strerror if isinstance(system, OSError) else None) or reason(error)
