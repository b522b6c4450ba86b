# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Waiting until no other process of this machine works in a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def wait_for_folder(
    folder: str | os.PathLike[str], waits: Callable[[], object] = lambda: None
) -> Iterator[bool]:
    """Holds an existing folder; a process that comes later waits.

    Args:
        folder: The folder.
        waits: Is called where another process holds it, before the wait.

    Yields:
        Whether the folder is held; False where folders cannot be locked (Windows, some network
        file systems).
    """
    with contextlib.ExitStack() as stack:
        held = False
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(Path(folder), os.O_RDONLY)
            stack.callback(os.close, descriptor)  # also gives the lock back
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            held = True
        yield held
