# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checkpoint files: atomic writes of what ``torch.save`` makes.

The file is an ordinary .zip archive, in which every record has a checksum (CRC-32). The comment of
the archive, which readers of .zip files pass over, is JSON: which run the checkpoint is of, the
start of the run that wrote it, and its iteration. :mod:`mmseg_resnest.engine.latest` reads it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import time
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from .._stack import copy_metadata
from ..errors import UserError
from ..io.atomic import atomic_open

POINTER = "last_checkpoint"
BEST_LINK, LAST_LINK = "best.pth", "last.pth"
#: How the comment of our archives begins.
MAGIC = b"mmseg-resnest checkpoint "
#: The key of the numbers in a history that :func:`snapshot` has made plain data.
HISTORY = "log_history"


class _TorchFile:
    """What torch writes into; keeps the first error instead of raising it.

    After an error torch's writer writes again in its destructor, which would end the process.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing to do: the file is flushed when it is complete."""


def write_checkpoint(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write what ``torch.save`` takes atomically, and sync it to the disk.

    ``iter``, ``run_id`` and ``start`` of its ``meta`` are written into the comment too. A UserError
    says that it cannot be written (no part of it is left), or its folder cannot be synced.
    """
    path = Path(path)
    meta = record.get("meta", {})
    note = {"iteration": int(meta.get("iter", 0)), "saved": time.time()}
    note.update((key, meta[key]) for key in ("run_id", "start") if key in meta)
    with atomic_open(path, sync=True) as file:
        target = _TorchFile(file)
        torch.save(record, cast(BinaryIO, target))
        if target.error is not None:
            raise target.error
        with zipfile.ZipFile(file, "a") as archive:
            archive.comment = MAGIC + json.dumps(note).encode()
    _sync_folder(path.parent)


def point_to(path: Path, folder: Path) -> None:
    """Let ``last_checkpoint`` of a folder, which MMEngine's tools read, name a checkpoint."""
    with atomic_open(folder / POINTER, sync=True) as file:
        file.write(os.fsencode(path))
    _sync_folder(folder)


def link_to(path: Path, folder: Path, name: str) -> None:
    """Let ``best.pth`` or ``last.pth`` of a folder be a symbolic link to a checkpoint.

    A file of that name which is no link stays. OSError: the file system has no such links.
    """
    link = folder / name
    if link.exists() and not link.is_symlink():
        return
    part = folder / f".{name}.{secrets.token_hex(4)}.part"
    try:
        part.symlink_to(os.path.relpath(path, folder))
        part.replace(link)
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a loss of power, where the file system can."""
    with contextlib.suppress(PermissionError):  # a folder may be writable and not readable
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise UserError(
                    "storage", folder, f"cannot be synced ({error.strerror})"
                ) from error
        finally:
            os.close(descriptor)


def snapshot(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy on the CPU that training does not change; tensors that occur twice stay one.

    It is plain data, which ``torch.load(weights_only=True)`` reads: MMEngine's histories of logged
    numbers become tensors, which :func:`.checkpoint_schema.restore_histories` turns back.
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
