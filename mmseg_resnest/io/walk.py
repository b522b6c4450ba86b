# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Walking through folders, links followed, without going round in circles."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from ..errors import UserError


def _refuse(folder: str, error: OSError) -> None:
    said = f"this folder cannot be listed ({error.strerror}); change its permissions"
    raise UserError("unreadable", folder, said) from error


def walk(
    top: str | os.PathLike[str],
    above: tuple[str, ...] = (),
    unreadable: Callable[[str, OSError], object] = _refuse,
) -> Iterator[tuple[str, list[str], list[str]]]:
    """As ``os.walk`` with ``followlinks``, but a link to a folder above itself ends there.

    Yields a folder, the names of the folders in it (remove one to leave it out) and of the other
    things in it, both sorted. ``above``: real paths of the folders that led here.

    Raises:
        UserError: A folder cannot be listed; unless ``unreadable`` takes note of it.
    """
    real = os.path.realpath(top)
    if real in above:
        return
    try:
        with os.scandir(top) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        unreadable(os.fspath(top), error)
        return
    where = os.fspath(top)
    folders = [entry.name for entry in entries if _is_folder(entry)]
    inside = set(folders)
    yield where, folders, [entry.name for entry in entries if entry.name not in inside]
    for name in folders:
        yield from walk(os.path.join(where, name), (*above, real), unreadable)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
