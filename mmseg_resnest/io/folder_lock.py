# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A folder in which one process at a time writes, on this host and on others that share it.

Two things protect a folder. The kernel's lock on the file ``.folder.lock`` (POSIX, ``lockf``)
belongs to a process: forked children, such as data loading workers, do not inherit it, and it ends
with the process. The record in the file says who holds the folder and is renewed by a thread
(heartbeat): it protects where the kernel's lock does not reach, on file systems without locks and
between hosts that do not share them. Clocks of two hosts are never compared: whoever finds the
record of another host watches whether it changes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from .json_files import parse_json
from .processes import is_alive, this_process

try:
    import fcntl
except ImportError:  # Windows: the record alone protects
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".folder.lock"
_SIZE = 1024  # of the record, in bytes: one write, one block
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_HELD_BY_ANOTHER = frozenset({errno.EAGAIN, errno.EACCES})
_SHORT_PAUSE = 0.1  # seconds; a process that was killed may hold the lock a little longer
_SHORT_PAUSES = 50
_WATCHED_PERIODS = 4
_MOST_TRIES = 1000  # to find the file in place; on some file systems it never is

# Folders that this process holds, by device and inode: POSIX locks do not exclude within a
# process, and closing any descriptor of a file gives up its lock.
_held: dict[tuple[int, int], FolderLock] = {}


class FolderLock:
    """Holds a folder; a context manager.

    A lock that a dead process on this host left is taken over at once. One of another host, or of a
    process that cannot be looked up, is watched for four heartbeats first.

    Args:
        folder: An existing folder.
        subject: What to call the folder in errors, such as the argument that names it.
        period: Seconds between two heartbeats, the same for every process that shares the folder.
        tell: Is called with one line when the wait takes longer.
        sleep: Waits a number of seconds.

    Attributes:
        taken_over: Who held the folder last and did not release it, or None.
        lost: Why the folder no longer belongs to this process, or None: it stood still for longer
            than others watch.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        subject: str | None = None,
        period: float = 5.0,
        tell: Callable[[str], None] = lambda line: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.folder = Path(folder)
        self.subject = subject or f"folder {self.folder}"
        self.taken_over: str | None = None
        self.lost: str | None = None
        self._path = self.folder / LOCK_FILE
        self._period, self._tell, self._sleep = period, tell, sleep
        self._record: dict[str, Any] = {}
        self._file = -1
        self._locked = False
        self._key = (-1, -1)
        self._pid = -1  # of the process that holds the folder; a forked child does not
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> FolderLock:
        """Take the folder.

        Raises:
            UserError: Another process holds it, which is named, or the lock cannot be written.
        """
        try:
            status = os.stat(self.folder)
            self._key = status.st_dev, status.st_ino
            holder = _held.get(self._key)
            if holder is not None and holder._pid != os.getpid():
                del _held[self._key]  # of the process that this one was forked from
            self._pid = os.getpid()
            holder = _held.setdefault(self._key, self)
            if holder is not self:
                self._pid = -1
                raise self._refusal(holder._record)
            try:
                self._take()
            except BaseException:
                if self._record and self._locked and self._file >= 0:
                    self._remove()
                self._close()
                raise
        except OSError as error:
            message = f"{self._path} cannot be locked ({error.strerror}); use another folder"
            raise UserError("not-writable", self.subject, message) from error
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, name="folder lock", daemon=True)
        self._thread.start()
        return self

    def release(self) -> None:
        """Release the folder; does nothing in a forked child."""
        if self._pid != os.getpid():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.lost is None:
            self._remove()
        self._close()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        """As :meth:`release`."""
        self.release()

    def renew(self) -> None:
        """One heartbeat: renew the record, or find that another process has the folder.

        Raises:
            OSError: The record cannot be written.
        """
        if self._is_in_place():
            free, content = self._lock(), os.pread(self._file, _SIZE, 0)
        else:  # somebody removed the file
            self._close_file()
            free, content = self._open()
            content = content or json.dumps(self._record).encode()
        owner = _parse(content)
        if not free or owner.get("token") != self._record["token"]:
            self.lost = f"{self.subject}: {_describe(owner)} has taken the folder"
            return
        self._record["beat"] += 1
        self._write()

    def _take(self) -> None:
        tries = unchanged = 0
        seen: bytes | None = None
        while True:
            free, content = self._open()
            owner = _parse(content)
            alive = is_alive(owner)
            if free and not content:
                break
            if alive or (not free and tries == _SHORT_PAUSES):
                raise self._refusal(owner)
            if not free:
                tries, pause = tries + 1, _SHORT_PAUSE
            elif alive is False or (unchanged == _WATCHED_PERIODS and content == seen):
                self.taken_over = _describe(owner)
                break
            else:
                if seen is None:
                    seconds = _WATCHED_PERIODS * self._period
                    was = f"was held by {_describe(owner)}"
                    self._tell(f"{self.subject}: {was}; watching for {seconds:g} s if it still is")
                elif content != seen:
                    raise self._refusal(owner)
                seen, unchanged, pause = content, unchanged + 1, self._period
            # Opened anew for each look: network file systems compare with the server then.
            self._close_file()
            self._sleep(pause)
        self._record = {
            **this_process(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "token": secrets.token_hex(8),
            "beat": 0,
        }
        self._write()
        if not self._locked:
            # Another process may have found the folder free too. The last one to write has it.
            self._close_file()
            self._sleep(self._period)
            owner = _parse(self._open()[1])
            if owner.get("token") != self._record["token"]:
                raise self._refusal(owner)

    def _refusal(self, owner: dict[str, Any]) -> UserError:
        message = f"is in use by {_describe(owner)}; wait until that ends, or use another folder"
        return UserError("in-use", self.subject, message)

    def _beat(self) -> None:
        while not self._stop.wait(self._period) and self.lost is None:
            with contextlib.suppress(OSError):  # a full or absent disk: the next one tries again
                self.renew()

    # --- the file ---

    def _open(self) -> tuple[bool, bytes]:
        """Open and lock the file: whether no other process has the lock, and the record."""
        flags = os.O_RDWR | os.O_CREAT
        for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
            flags |= getattr(os, name, 0)
        for _ in range(_MOST_TRIES):
            self._file = os.open(self._path, flags, 0o666)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise OSError(errno.EINVAL, "not a file")
            free = self._lock()
            if not free or self._is_in_place():
                return free, os.pread(self._file, _SIZE, 0)
            self._close_file()  # its holder removed it meanwhile
        raise OSError(errno.EBUSY, "another file takes its place each time")

    def _lock(self) -> bool:
        """Whether no other process has the kernel's lock, which this one has now if there is."""
        self._locked = False
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._locked = True
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER | _NO_LOCKS:
                raise
            return error.errno in _NO_LOCKS
        return True

    def _is_in_place(self) -> bool:
        """Whether the open file is still the one with the lock's name."""
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _write(self) -> None:
        data = json.dumps(self._record).encode().ljust(_SIZE - 1) + b"\n"
        os.pwrite(self._file, data, 0)
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(self._file)

    def _remove(self) -> None:
        """Remove the file while it is locked: whoever waits for it looks whether it is in place."""
        with contextlib.suppress(OSError):
            if self._is_in_place():
                self._path.unlink()

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _close(self) -> None:
        self._close_file()
        self._record, self._pid = {}, -1
        if _held.get(self._key) is self:
            del _held[self._key]


def is_held(folder: str | os.PathLike[str]) -> bool:
    """Whether a process that may still run holds a folder; the lock is left alone."""
    path = Path(folder) / LOCK_FILE
    try:
        status = os.stat(folder)
        holder = _held.get((status.st_dev, status.st_ino))
        if holder is not None and holder._pid == os.getpid():
            return True  # to close its file here would give the lock up
        content = path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b""
    except OSError:
        return False
    return bool(content) and is_alive(_parse(content)) is not False


def _parse(content: bytes) -> dict[str, Any]:
    """The record; empty if it cannot be read, as while it is written."""
    try:
        record = parse_json(content, "lock")
    except UserError:
        return {}
    return record if isinstance(record, dict) else {}


def _describe(owner: dict[str, Any]) -> str:
    """E.g. ``process 4711 on host node7 (since 2026-01-31 12:00:00 +0000)``."""
    if not owner:
        return "another process"
    pid, host, started = (
        "".join(c for c in str(owner.get(key, "?"))[:80] if c.isprintable())
        for key in ("pid", "host", "started")
    )
    return f"process {pid} on host {host} (since {started})"
