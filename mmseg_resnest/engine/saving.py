# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checkpoint files that are there whole or not at all.

A file is written beside its place, synced, and then takes its name. It is an ordinary
``torch.save`` archive: the record with its SHA-256 stands in the archive's comment, which every
reader of .zip files, torch among them, passes over.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

__all__ = [
    "find_newest",
    "point_to",
    "restore_histories",
    "snapshot",
    "sync_folder",
    "what_is_wrong",
    "write_checkpoint",
]

POINTER = "last_checkpoint"
_MAGIC = b"mmseg-resnest checkpoint "
_END = struct.Struct("<4s4H2LH")  # the end of a .zip file, up to the comment
_CHUNK = 1 << 20


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

    def finish(self, iteration: int) -> None:
        """Write the comment with the checksum, and sync."""
        if self._error is not None:
            raise self._error
        if self._held != b"\0\0":
            raise RuntimeError("torch.save did not end its file with an archive without a comment")
        record = {"sha256": self._digest.hexdigest(), "iteration": iteration, "saved": time.time()}
        comment = _MAGIC + json.dumps(record).encode()
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
        record: What ``torch.save`` takes.
        path: The file; its folder exists. A file of that name stays until the new one is whole.
        sync: Sync its folder too, so that the file keeps its name through a loss of power.

    Raises:
        OSError: It cannot be written; no part of it is left. Or the folder cannot be synced.
    """
    path = Path(path)
    with _beside(path) as (part, descriptor):
        file = _HashedFile(descriptor)
        torch.save(record, cast(BinaryIO, file))
        file.finish(int(record.get("meta", {}).get("iter", 0)))
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


# --- which are whole ------------------------------------------------------------------------


def _read_comment(file: BinaryIO) -> tuple[int, dict[str, Any]] | None:
    """Length of what the checksum covers, and the record; None where there is none."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - 4096)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + _END.size:
        return None
    comment = tail[at + _END.size :]
    if _END.unpack_from(tail, at)[-1] != len(comment) or not comment.startswith(_MAGIC):
        return None
    try:
        record = json.loads(comment[len(_MAGIC) :])
        float(record["saved"]), str(record["sha256"])
    except (ValueError, KeyError, TypeError):
        return None
    return start + at + _END.size - 2, record


def what_is_wrong(path: Path, foreign: bool = True) -> str | None:
    """Why a checkpoint is not whole, or None when it is.

    Its checksum is compared; a file that has none, because something else wrote it, is whole when
    all parts of the archive pass the .zip format's own check.

    Args:
        path: The file.
        foreign: Check files without a checksum too, which must then be archives.
    """
    try:
        with path.open("rb") as file:
            found = _read_comment(file)
            if found is None:
                return _check_archive(file) if foreign else None
            length, record = found
            digest = hashlib.sha256()
            file.seek(0)
            while length:
                chunk = file.read(min(length, _CHUNK))
                if not chunk:
                    return "is cut short"
                digest.update(chunk)
                length -= len(chunk)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if digest.hexdigest() != record["sha256"]:
        return "does not have the content that its checksum was made of"
    return None


def _check_archive(file: BinaryIO) -> str | None:
    file.seek(0)
    if not file.read(1):
        return "is empty"
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size))
    end = file.read()  # torch writes no comment; ours was looked for before
    if end[:4] != b"PK\5\6" or end[-2:] != b"\0\0" or not zipfile.is_zipfile(file):
        return "is cut short, damaged at its end, or no checkpoint"
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        return f"is damaged ({error})"
    return None if bad is None else f"is damaged in {bad}"


def _written(path: Path) -> float:
    """When a file was written: as its record says, which copying does not change."""
    try:
        with path.open("rb") as file:
            found = _read_comment(file)
        return float(found[1]["saved"]) if found else path.stat().st_mtime
    except OSError:
        return 0.0


def find_newest(folder: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest whole checkpoint of a run, and those that were passed over for it, with reasons.

    Args:
        folder: Where the run writes its checkpoints. What ``last_checkpoint`` names counts too;
            those of the best scores (``best_*``), which hold weights only, do not.
    """
    found = {path for path in folder.glob("*.pth") if not path.name.startswith("best_")}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        named = Path((folder / POINTER).read_text(encoding="utf-8").strip())
        beside = folder / named.name  # the folder may have been moved
        if beside.is_file() or named.is_file():
            found.add(beside if beside.is_file() else named)
    skipped: list[tuple[Path, str]] = []
    for path in sorted(found, key=lambda p: (_written(p), p.name), reverse=True):
        reason = what_is_wrong(path)
        if reason is None:
            return path, skipped
        skipped.append((path, reason))
    return None, skipped


# --- what is in them ------------------------------------------------------------------------


_HISTORY = "log_history"


def restore_histories(message_hub: dict[str, Any]) -> None:
    """Turn the histories in the state of a message hub back into MMEngine's; in place."""
    scalars = message_hub.get("log_scalars", {})
    for name, value in scalars.items():
        if isinstance(value, dict) and _HISTORY in value:
            buffer = HistoryBuffer(max_length=value["max_length"])
            buffer._log_history = value[_HISTORY].numpy().copy()
            buffer._count_history = value["count"].numpy().copy()
            scalars[name] = buffer


def snapshot(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy on the CPU that training does not change; tensors that occur twice stay one.

    It is plain data, which ``torch.load(weights_only=True)`` reads: MMEngine's histories of logged
    numbers become tensors, which :func:`restore_histories` turns back.
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
            _HISTORY: torch.from_numpy(log.copy()),
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
