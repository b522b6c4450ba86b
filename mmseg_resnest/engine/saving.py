# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checkpoint files that are there whole or not at all.

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
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from .._stack import copy_metadata

__all__ = [
    "point_to",
    "snapshot",
    "sync_folder",
    "write_checkpoint",
]

POINTER = "last_checkpoint"
#: How the comment of our archives begins.
MAGIC = b"mmseg-resnest checkpoint "
#: The key of the numbers in a history that :func:`snapshot` has made plain data.
HISTORY = "log_history"


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


def write_checkpoint(
    record: Mapping[str, Any], path: str | os.PathLike[str], sync: bool = True
) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        record: What ``torch.save`` takes. ``iter``, ``run_id`` and ``start`` of its ``meta`` are
            written into the comment, where they are read without the rest.
        path: The file; its folder exists. A file of that name stays until the new one is whole.
        sync: Sync its folder too, so that the file keeps its name through a loss of power.

    Raises:
        OSError: It cannot be written; no part of it is left. Or the folder cannot be synced.
    """
    path = Path(path)
    with _beside(path) as (part, descriptor):
        file = _HashedFile(descriptor)
        torch.save(record, cast(BinaryIO, file))
        meta = record.get("meta", {})
        about = {"iteration": int(meta.get("iter", 0))}
        file.finish({**about, **{key: meta[key] for key in ("run_id", "start") if key in meta}})
        os.replace(part, path)
    if sync:
        sync_folder(path.parent)


def point_to(path: Path, folder: Path) -> None:
    """Let ``last_checkpoint`` of a folder, which MMEngine's tools read, name a whole checkpoint."""
    pointer = folder / POINTER
    with _beside(pointer) as (part, descriptor):
        data = os.fsencode(path)
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
        os.replace(part, pointer)
    sync_folder(folder)


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


def sync_folder(folder: Path) -> None:
    """Make a rename last through a loss of power, where the file system can.

    Raises:
        OSError: The folder is gone, or the disk fails.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


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
        if isinstance(copy, OrderedDict):
            copy_metadata(value, copy)
    elif type(value) in (list, tuple):
        copy = type(value)(snapshot(item, memo) for item in value)
    else:
        return value
    memo[id(value)] = value, copy  # keeps the value, so that no other gets its id
    return copy
