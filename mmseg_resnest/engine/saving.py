# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checkpoint files that are there whole or not at all, and the thread that writes them.

A file is written beside its place, synced, and then takes its name. It is an ordinary
``torch.save`` archive: which run it is of, its iteration and its SHA-256 stand in the archive's
comment, which every reader of .zip files, torch among them, passes over. It is read in
:mod:`mmseg_resnest.engine.latest`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

__all__ = [
    "CheckpointWriter",
    "point_to",
    "remove_parts",
    "snapshot",
    "write_checkpoint",
]

POINTER = "last_checkpoint"
#: How the comment of our archives begins.
MAGIC = b"mmseg-resnest checkpoint "
#: The key of the numbers in a history that :func:`snapshot` has made plain data.
HISTORY = "log_history"
#: What a full disk, a quota, a permission or a network mount says; it may be over soon.
PASSING = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        *(errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ESTALE, errno.EIO, errno.ENOENT, errno.ETIMEDOUT, errno.EBUSY, errno.EAGAIN),
    }
)


# --- one file -------------------------------------------------------------------------------


class _HashedFile:
    """What torch writes into: hashes all but the last two bytes, and never raises.

    torch's writer cannot be left half-way: it would go on writing while it is taken down, and end
    the process. So the first error is kept for :meth:`finish`, and what comes after it dropped.
    """

    def __init__(self, descriptor: int) -> None:
        self._file = descriptor
        self._digest = hashlib.sha256()
        self._held = b""
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        if self._error is None and size:
            try:
                if size < 2:
                    view = memoryview(self._held + bytes(view))
                    out = view[:-2]
                    self._put(out)
                else:
                    self._put(memoryview(self._held))
                    self._put(view[:-2])
                self._held = bytes(view[-2:])
            except OSError as error:
                self._error = error
        return size

    def flush(self) -> None:
        """Nothing is kept back but the last two bytes."""

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the comment, which ends with the checksum of all that is before it, and sync."""
        if self._error is not None:
            raise self._error
        if self._held != b"\0\0":
            raise RuntimeError("torch.save did not end its file with an archive without a comment")
        record = json.dumps({**about, "saved": time.time()})
        comment = MAGIC + f'{record[:-1]}, "sha256": "'.encode()
        self._digest.update(comment)
        comment += f'{self._digest.hexdigest()}"}}'.encode()
        self._all(memoryview(struct.pack("<H", len(comment)) + comment))
        os.fsync(self._file)

    def _put(self, data: memoryview) -> None:
        self._digest.update(data)
        self._all(data)

    def _all(self, data: memoryview) -> None:
        while len(data):
            data = data[os.write(self._file, data) :]


def write_checkpoint(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        record: What ``torch.save`` takes. ``iter``, ``run_id`` and ``start`` of its ``meta`` are
            written into the comment, where they are read without the rest.
        path: The file; its folder exists. A file of that name stays until the new one is whole.

    Raises:
        OSError: It cannot be written; no part of it is left.
    """
    path = Path(path)
    with _beside(path) as (part, descriptor):
        file = _HashedFile(descriptor)
        torch.save(record, cast(BinaryIO, file))
        meta = record.get("meta", {})
        about = {"iteration": int(meta.get("iter", 0))}
        file.finish({**about, **{key: meta[key] for key in ("run_id", "start") if key in meta}})
        os.replace(part, path)
    _sync_folder(path.parent)


def point_to(path: Path, folder: Path) -> None:
    """Let ``last_checkpoint`` of a folder, which MMEngine's tools read, name a whole checkpoint."""
    pointer = folder / POINTER
    with _beside(pointer) as (part, descriptor):
        os.write(descriptor, os.fspath(path).encode())
        os.fsync(descriptor)
        os.replace(part, pointer)
    _sync_folder(folder)


@contextlib.contextmanager
def _beside(path: Path) -> Any:
    """A new file next to ``path``, with the user's umask; removed unless it was renamed."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield part, descriptor
    finally:
        with contextlib.suppress(OSError):  # what matters was said by fsync
            os.close(descriptor)
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a loss of power, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def remove_parts(folder: Path) -> list[str]:
    """Remove what interrupted writes have left in a folder; returns their names."""
    found = [path for path in folder.glob(".*.part") if path.is_file()]
    for path in found:
        with contextlib.suppress(OSError):
            path.unlink()
    return [path.name for path in found]


# --- in the background ----------------------------------------------------------------------


def snapshot(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy on the CPU that training does not change; tensors that occur twice stay one.

    It is plain data, which ``torch.load(weights_only=True)`` reads: MMEngine's histories of logged
    numbers become tensors, which
    :func:`mmseg_resnest.engine.checkpoint_schema.restore_histories` turns back.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)][1]
    if isinstance(value, torch.Tensor):
        copy: Any = value.detach().to("cpu", copy=True)
    elif isinstance(value, np.ndarray):
        copy = value.copy()
    elif isinstance(value, np.generic):
        return value.item()
    elif isinstance(value, HistoryBuffer):
        log, count = value.data
        copy = {
            HISTORY: torch.from_numpy(log.copy()),
            "count": torch.from_numpy(count.copy()),
            "max_length": int(value.max_length),
        }
    elif isinstance(value, dict):
        copy = OrderedDict() if isinstance(value, OrderedDict) else {}
        copy.update((key, snapshot(item, memo)) for key, item in value.items())
        if hasattr(value, "_metadata") and isinstance(copy, OrderedDict):  # of a state dict
            copy._metadata = value._metadata  # type: ignore[attr-defined]
    elif type(value) in (list, tuple):
        copy = type(value)(snapshot(item, memo) for item in value)
    else:
        return value
    memo[id(value)] = value, copy  # keeps the value, so that no other gets its id
    return copy


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
