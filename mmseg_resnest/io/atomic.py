# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Atomic writes: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError


@contextmanager
def atomic_open(path: str | os.PathLike[str], sync: bool = False) -> Iterator[BinaryIO]:
    """A new file to write into, beside ``path``; it takes that name at the end of the ``with``.

    A process that is killed meanwhile leaves a hidden ``.NAME.*.part``; an exception within the
    ``with`` discards it. Its path, to read back what is written, is ``file.name``.

    Args:
        path: The file; its folder is made.
        sync: Whether to wait for the disk first, so that a power cut does no harm either.

    Yields:
        The file, binary, with the permissions that the user's umask gives.

    Raises:
        UserError: It cannot be written; nothing is left behind.
    """
    target = Path(path)
    # Names have at most 255 bytes; a part of a long one tells enough.
    start = os.fsencode(target.name)[:220].decode(errors="ignore")
    part = target.with_name(f".{start}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "x+b") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        do = "choose another place or make room"
        if error.errno == errno.ENAMETOOLONG:
            do = "shorten the name of what it is made from"
        message = f"cannot be written ({error.strerror or error}); {do}"
        raise UserError("not-writable", target, message) from error
    finally:
        with suppress(OSError):
            part.unlink()


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file atomically; text as UTF-8. See :func:`atomic_open`."""
    with atomic_open(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_path(
    target: str | os.PathLike[str], subject: str | None = None, hint: str = ""
) -> Iterator[Path]:
    """A path to write to, which is moved to ``target`` when the block ends without an error.

    It may become a file, or a folder where ``target`` is an empty one or none. Other files that
    are written beside it (OpenVINO's ``.bin``) are moved along. A UserError, about ``subject`` or
    the target, says that the folder cannot be written; ``hint`` is what to do then.
    """
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem[:50]}.") as folder:
            yield Path(folder) / path.name
            # ``target`` last: when it is there, so is all that it needs.
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
                os.replace(file, path.parent / file.name)
    except OSError as error:
        message = f"cannot be written ({error.strerror or error}){hint and f'; {hint}'}"
        raise UserError("not-writable", subject or path, message) from error
