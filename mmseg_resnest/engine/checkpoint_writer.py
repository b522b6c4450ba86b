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

from .saving import sync_folder, write_checkpoint

__all__ = ["CheckpointWriter", "Step", "Unsaved"]


@dataclass(frozen=True)
class Step:
    """What is done once a checkpoint is whole.

    Attributes:
        failure: What to say when it cannot be done, as ``older checkpoints could not be removed``.
        run: Does it; it may be called again after it has raised an ``OSError``.
        needed: Whether a run that could not do it has failed.
    """

    failure: str
    run: Callable[[], None]
    needed: bool = False


@dataclass(frozen=True)
class Unsaved:
    """What could not be done in the end.

    Attributes:
        text: What and why, in words.
        checkpoint: Whether a checkpoint was not written; otherwise they are all whole.
        needed: Whether the run has failed therefore.
    """

    text: str
    checkpoint: bool
    needed: bool


@dataclass
class _Job:
    record: Mapping[str, Any] | None  # None once the file is whole
    path: Path
    steps: list[Step]
    tries: int = 0
    not_before: float = 0.0

    def unsaved(self, step: Step | None, error: OSError) -> Unsaved:
        reason = error.strerror or str(error)
        if step is None:
            return Unsaved(f"{self.path}: could not be saved ({reason})", True, True)
        text = f"{self.path.name} is saved, but {step.failure} ({reason})"
        return Unsaved(text, False, step.needed)


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time, and tries again what fails.

    Of each kind of checkpoint only the newest waits: training is never held up, and no more than
    one copy of each kind is kept beside the one being written. A file that is whole is not written
    again: what is done afterwards is tried again by itself, each step apart from the others.

    Args:
        warn: Told once when something starts to fail, and of what cannot be written at all.
        inform: Told when it works again.
        pauses: Seconds before the second, third, ... try; the last one repeats.
        last_tries: How often something is tried in :meth:`wait` before it is given up.
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
        self._failing: set[str] = set()
        self._draining = False
        self._given_up: list[Unsaved] = []
        self._fault: BaseException | None = None
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None

    def use(self, free: Callable[[], None]) -> None:
        """Set what is called after a failed write, to remove what nobody needs."""
        self._free = free

    def submit(
        self, kind: str, record: Mapping[str, Any], path: Path, steps: Sequence[Step] = ()
    ) -> None:
        """Hand over a checkpoint; returns at once.

        Args:
            kind: One that still waits and has the same kind is dropped for this one, and what is
                left of its steps: those of the newer one stand for them.
            record: A :func:`~mmseg_resnest.engine.saving.snapshot`.
            path: The file.
            steps: Done in the thread when the file is whole, in this order; one that fails does
                not keep the next from being done.
        """
        with self._condition:
            self._raise_fault()
            dropped = self._pending.pop(kind, None)
            if dropped is not None and dropped.record is not None and dropped.path != path:
                self._inform(f"{dropped.path.name} was not written: {path.name} is newer")
            sync = Step("its folder could not be synced", lambda: sync_folder(path.parent))
            self._pending[kind] = _Job(record, path, [sync, *steps])  # last: others go first
            if self._thread is None:
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
            failed: list[tuple[Step | None, OSError]] = []
            fault: BaseException | None = None
            try:
                failed = self._do(job)
            except BaseException as error:
                fault = error
            with self._condition:
                self._busy = False
                self._fault = self._fault or fault
                if failed:
                    self._try_again(kind, job, failed)
                self._condition.notify_all()
            del job

    def _do(self, job: _Job) -> list[tuple[Step | None, OSError]]:
        """Write the file, unless it is whole, and do its steps; returns what failed."""
        if job.record is not None:
            try:
                write_checkpoint(job.record, job.path, sync=False)
            except OSError as error:
                self._tell_failure(
                    "",
                    f"{job.unsaved(None, error).text}; earlier checkpoints are kept, and saving is"
                    " tried again",
                )
                with contextlib.suppress(OSError):
                    self._free()
                return [(None, error)]
            job.record, job.tries = None, 0
            self._tell_success("", f"{job.path.name} was written: saving works again")
        failed: list[tuple[Step | None, OSError]] = []
        for step in job.steps:
            try:
                step.run()
            except OSError as error:
                failed.append((step, error))
                text = f"{job.unsaved(step, error).text}; this is tried again"
                self._tell_failure(step.failure, text)
            else:
                self._tell_success(step.failure, f"no longer: {step.failure}")
        job.steps = [step for step, _ in failed if step is not None]
        return failed

    def _tell_failure(self, what: str, text: str) -> None:
        if what not in self._failing:
            self._failing.add(what)
            self._warn(text)

    def _tell_success(self, what: str, text: str) -> None:
        if what in self._failing:
            self._failing.remove(what)
            self._inform(text)

    def _next(self) -> tuple[str, _Job]:
        """The first job whose time has come; waits for one."""
        while True:
            now = time.monotonic()
            for kind, job in self._pending.items():
                if job.not_before <= now:
                    return kind, job
            soonest = min((j.not_before for j in self._pending.values()), default=None)
            self._condition.wait(None if soonest is None else soonest - now)

    def _try_again(
        self, kind: str, job: _Job, failed: Sequence[tuple[Step | None, OSError]]
    ) -> None:
        job.tries += 1
        if kind in self._pending:  # a newer one waits
            return
        if self._draining and job.tries >= self._last_tries:
            self._given_up += [job.unsaved(step, error) for step, error in failed]
            return
        pause = self._pauses[min(job.tries, len(self._pauses)) - 1]
        job.not_before = time.monotonic() + pause
        self._pending = {kind: job, **self._pending}
