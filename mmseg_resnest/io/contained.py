# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Names of files that a stranger wrote, kept inside of the folder that they belong to.

A name in an annotation, a list or an archive may lead anywhere: by its own text (``contained``,
``is_contained_member``, which touch no file), or by symbolic links that came with it
(``check_inside``). A folder that a user names may itself be a link to another disk.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath

from ..errors import UserError
from .text import printable

_DRIVE = re.compile(r"[A-Za-z]:")
_LONGEST_PART = 255  # bytes: what file systems take


def contained(
    name: object, subject: str, start: str | PurePosixPath = "", hint: str = ""
) -> PurePosixPath:
    """The place that a name leads to inside of a folder, relative to that, without ``..``.

    Separators may be those of Windows. ``..`` is followed as long as it stays inside.

    Args:
        name: The name as it was found, relative to ``start``.
        subject: What to call the name in errors, such as ``a.json: imagePath``.
        start: Where the name starts, relative to the folder.
        hint: What to do about a name that is refused.

    Raises:
        UserError: The name is not text, leads outside of the folder or to the folder itself, or
            no file system takes it.
    """
    advice = hint or "give it relative to its folder"

    def refuse(reason: str) -> UserError:
        return UserError("unsafe-path", subject, f"{name!r:.300} is unsafe ({reason}); {advice}")

    if not isinstance(name, str):
        raise refuse("not the name of a file")
    path = name.replace("\\", "/")
    if path.startswith("/") or _DRIVE.match(path):
        raise refuse("an absolute path")
    parts = list(PurePosixPath(start).parts)
    for part in PurePosixPath(path).parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            raise refuse("outside of its folder")
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in parts]
    if not parts or "\0" in path or max(sizes) > _LONGEST_PART:
        raise refuse("not the name of a file")
    return PurePosixPath(*parts)


def check_inside(path: Path, folder: Path, subject: str, hint: str = "") -> None:
    """Make sure that a path lies in a folder when all symbolic links are followed.

    The path need not exist; the folder may itself be a link. Errors name ``subject``.

    Raises:
        UserError: A link leads outside of the folder.
    """
    top = os.path.realpath(folder)
    if not Path(os.path.realpath(path)).is_relative_to(top):
        advice = hint or "replace the link with the file"
        message = f"{printable(path)} is unsafe (a link leads outside of its folder); {advice}"
        raise UserError("unsafe-path", subject, message)


def check_real_folder(folder: Path, hint: str) -> None:
    """Make sure that a folder of this package's own is not a link or a file.

    What is written there replaces and removes: through a link, files of somebody else. The folder
    need not exist.

    Raises:
        UserError: It is a link, or is not a folder.
        OSError: It cannot be looked at.
    """
    try:
        mode = os.lstat(folder).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        message = f"is a symbolic link, not a folder; {hint}"
        raise UserError("unsafe-path", printable(folder), message)
    if not stat.S_ISDIR(mode):
        raise UserError("wrong-path-type", printable(folder), f"is not a folder; {hint}")


def is_contained_member(name: str) -> bool:
    """Whether the name of an archive's member is one that official archives have.

    Not if it is absolute, climbs with ``..``, or has a drive, a backslash or a control character.
    """
    return not (
        name.startswith(("/", "~"))
        or ".." in PurePosixPath(name).parts
        or "\\" in name
        or _DRIVE.match(name)
        or any(ord(character) < 32 for character in name)
    )
