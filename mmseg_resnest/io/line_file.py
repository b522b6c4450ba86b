# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A text file that grows, such as a log, on a disk that may be full for a while."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

_MOST_WAITING = 4 << 20  # bytes


class LineFile:
    """Appends texts to a file, which is made with the first one; each is written atomically.

    A text that cannot be written waits, and goes before the next one; ``reason`` says why. The
    oldest are dropped when those that wait take more than 4 MiB.
    """

    closed = False  # as a stream of the logging module: more can always be written

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.reason = ""
        self._forget()

    def write(self, text: str) -> int:
        """Write a text, or keep it; returns its length, as a stream does, and raises nothing."""
        if self._process != os.getpid():  # a fork: what waits is its parent's to write
            self._forget()
        data = text.encode(errors="backslashreplace")
        self._waiting.append(data)
        self._size += len(data)
        self._try()
        while self._size > _MOST_WAITING:
            self._size -= len(self._waiting.popleft())
            self._dropped += 1
        return len(text)

    def flush(self) -> None:
        """Try once more to write what waits."""
        if self._waiting:
            self._try()

    close = flush

    def give_up(self) -> int:
        """Try once more to write what waits, and forget it; returns how many texts are lost."""
        self.flush()
        missing = len(self._waiting) + self._dropped
        self._forget()
        return missing

    def _forget(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._size = self._dropped = 0
        self._process = os.getpid()

    def _try(self) -> None:
        data = b"".join(self._waiting)
        try:
            with open(self.path, "ab", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    written = file.write(data)
                    while written < len(data):
                        written += file.write(data[written:])
                except OSError:
                    file.truncate(size)  # a part of a line is worse than none
                    raise
        except OSError as error:
            self.reason = error.strerror or str(error)
            return
        self._waiting.clear()
        self._size = 0
