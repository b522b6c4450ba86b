# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Names of files that a stranger wrote, kept inside of the folder that they belong to.

A name in an annotation, a list or an archive may lead anywhere; these functions look at the name
alone and touch no file. Symbolic links that lie in a folder of the user's are the user's: a folder
of images is often a link to another disk.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ..errors import UserError

__all__ = ["contained", "is_contained_member"]

_DRIVE = re.compile(r"[A-Za-z]:")
_LONGEST_PART = 255  # bytes: what file systems take


def contained(
    name: object, subject: str, start: str | PurePosixPath = "", hint: str = ""
) -> PurePosixPath:
    """The place that a name leads to inside of a folder.

    Separators may be those of Windows. ``..`` is followed as long as it stays inside.

    Args:
        name: The name as it was found, relative to ``start``.
        subject: What to call the name in errors, such as ``a.json: imagePath``.
        start: Where the name starts, relative to the folder.
        hint: What to do about a name that is refused.

    Returns:
        The path relative to the folder, without ``.`` and ``..``, with forward slashes.

    Raises:
        UserError: The name is not text, is empty, is absolute or has a drive, leads outside of
            the folder or to the folder itself, or is none that a file system takes.
    """
    advice = hint or "give it relative to its folder"
    if not isinstance(name, str):
        raise UserError(f"{subject}: {name!r:.80} is not the name of a file; {advice}")
    path = name.replace("\\", "/")
    if path.startswith("/") or _DRIVE.match(path):
        raise UserError(f"{subject}: {name!r:.300} is unsafe (an absolute path); {advice}")
    parts = list(PurePosixPath(start).parts)
    for part in PurePosixPath(path).parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            raise UserError(
                f"{subject}: {name!r:.300} is unsafe (it leads outside of its folder); {advice}"
            )
    if not parts:
        raise UserError(f"{subject}: {name!r:.300} is not the name of a file; {advice}")
    for part in parts:
        size = len(part.encode("utf-8", "surrogatepass"))
        if "\0" in part or size > _LONGEST_PART:
            raise UserError(f"{subject}: {name!r:.80} is not the name of a file; {advice}")
    return PurePosixPath(*parts)


def is_contained_member(name: str) -> bool:
    """Whether the name of an archive's member is one that official archives have.

    Args:
        name: With forward slashes.

    Returns:
        False if it is absolute, climbs with ``..``, or has a drive, a backslash or a control
        character.
    """
    return not (
        name.startswith("/")
        or ".." in PurePosixPath(name).parts
        or "\\" in name
        or _DRIVE.match(name)
        or any(ord(character) < 32 for character in name)
    )
