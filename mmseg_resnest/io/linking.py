# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Putting a file in a second place with as little space as the file system allows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError

LINKS = ("auto", "reflink", "hard", "symlink", "copy")
_FICLONE = 0x40049409  # linux/fs.h: share a file's blocks until one of the two is written


def put_link(source: Path, target: Path, how: str = "auto") -> str:
    """Makes ``target`` the same as ``source``.

    ``auto`` tries, in this order: shared blocks (reflink: Btrfs, XFS), a hard link, a symbolic
    link, a copy.

    Returns ``linked`` or ``copied``.

    Raises:
        UserError: ``how``, one of ``LINKS``, is not possible here.
    """
    real = source.resolve()
    kinds: dict[str, Callable[[], object]] = {
        "reflink": lambda: _reflink(real, target),
        "hard": lambda: os.link(real, target),
        "symlink": lambda: target.symlink_to(real),
        "copy": lambda: shutil.copyfile(real, target),
    }
    for name in kinds if how == "auto" else (how,):
        try:
            kinds[name]()
        except OSError as error:
            target.unlink(missing_ok=True)
            if how != "auto" or name == "copy":
                message = f"{name} to {target.parent} failed ({error.strerror}); use --link auto"
                raise UserError("not-writable", source, message) from error
        else:
            return "copied" if name == "copy" else "linked"
    raise AssertionError("a copy either succeeds or raises")


def is_linked(source: Path, target: Path, how: str) -> bool:
    """Whether ``target``, which exists, is what :func:`put_link` makes; with ``auto`` anything."""
    link, same = target.is_symlink(), os.path.samefile(source, target)
    own = {"auto": True, "symlink": link, "hard": same and not link}
    return own.get(how, not same)


def _reflink(source: Path, target: Path) -> None:
    try:
        import fcntl
    except ImportError as error:
        raise OSError(0, "not on this system") from error
    with open(source, "rb") as reader, open(target, "xb") as writer:
        fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
