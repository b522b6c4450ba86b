# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The files of sources: in folders or archives, read and never written.

Every file gets a name, its path in the folder or archive with forward slashes. Data sets look for
the ends of these names, so that it does not matter how deep a copy lies.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ...io.walk import walk
from ..layout import PREPARED

# Folders that systems and file servers make; some cannot be listed.
_OF_SYSTEMS = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "System Volume Information")
)
_LARGEST = 1 << 30  # bytes of a file in an archive, which is read as a whole


@dataclass(frozen=True)
class Place:
    """One file of a source; small, so that it can be sent to another process.

    Attributes:
        name: Its name in the source, with forward slashes.
        size: In bytes, uncompressed.
        stamp: Changes when the content changes: CRC-32, or size and modification time.
        file: The file itself, or the archive that it lies in.
        kind: ``file``, ``zip``, ``tar``, or ``staged``: a file that will be removed at the end.
        offset: Where its bytes start, for ``tar``.
    """

    name: str
    size: int
    stamp: str
    file: Path
    kind: str = "file"
    offset: int = 0

    def fingerprint_parts(self) -> list[str]:
        """What tells it from other files and from other versions of itself."""
        where = "" if self.kind == "staged" else os.fspath(self.file.resolve())
        return [where, self.name, self.stamp]

    def read(self) -> bytes:
        """The whole content; a ZIP archive's CRC-32 is checked.

        Raises:
            UserError: It is damaged or cannot be read.
        """
        if self.kind in ("zip", "tar"):
            check_file_size(self.size, self)
        try:
            if self.kind == "zip":
                return _open_zip(str(self.file), os.getpid()).read(self.name)
            with open(self.file, "rb") as stream:
                stream.seek(self.offset)
                data = stream.read(self.size if self.kind == "tar" else -1)
        except OSError as error:
            raise UserError("unreadable", self, f"cannot be read ({error})") from error
        except Exception as error:  # zlib.error, BadZipFile and their like have no common base
            raise UserError("corrupt", self, f"is damaged ({error}); get it again") from error
        if self.kind == "tar" and len(data) != self.size:
            raise UserError("corrupt", self, "the archive ends early; get it again")
        return data

    def __str__(self) -> str:
        return str(self.file) if self.kind in ("file", "staged") else f"{self.file}: {self.name}"


def check_room(folder: Path, needed: int, hint: str = "") -> None:
    """Refuse to start what would fill the disk."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        message = f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; make room"
        raise UserError("not-writable", folder, f"{message}{hint}")


def check_file_size(size: int, name: object) -> None:
    """Refuse a file that would take the memory or the disk; archives may claim any size."""
    if not 0 <= size <= _LARGEST:
        message = f"has {size:,} bytes, more than the {_LARGEST:,} allowed; get the archive again"
        raise UserError("too-large", name, message)


@functools.lru_cache(maxsize=4)
def _open_zip(path: str, pid: int) -> zipfile.ZipFile:
    """An open archive for each process: a file position shared with a parent would wander."""
    return zipfile.ZipFile(path)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's: ``.DS_Store``, ``._a.png``, ``__MACOSX``."""
    return name.startswith(".") or name in _OF_SYSTEMS


def list_folder(folder: Path) -> Iterator[Place]:
    """The files below a folder, links followed, in order of their names.

    Hidden files and folders are left out, and folders that a data set was prepared in.
    """
    for where, folders, names in walk(folder):
        folders[:] = [
            name for name in folders
            if not is_hidden(name) and not os.path.isdir(os.path.join(where, name, PREPARED))
        ]  # fmt: skip
        for name in names:
            if is_hidden(name):
                continue
            path = Path(where, name)
            try:
                status = path.stat()
            except OSError as error:
                raise UserError("unreadable", path, f"cannot be read ({error.strerror})") from error
            if stat.S_ISREG(status.st_mode):
                stamp = f"{status.st_size}-{status.st_mtime_ns}"
                yield Place(path.relative_to(folder).as_posix(), status.st_size, stamp, path)


class Files:
    """The files of all sources of a data set; messages call the sources by ``sources``."""

    def __init__(self, places: Sequence[Place], sources: Sequence[Path]) -> None:
        self.places = list(places)
        self.sources = ", ".join(str(source) for source in sources)

    def match(self, pattern: str) -> list[tuple[re.Match[str], Place]]:
        """The files whose name, from some folder on, matches the whole pattern, by name."""
        compiled = re.compile(rf"(?:.*/)?{pattern}\Z")
        found = [(compiled.match(place.name), place) for place in self.places]
        matched = [(match, place) for match, place in found if match]
        return sorted(matched, key=lambda pair: pair[1].name)

    def one(self, pattern: str) -> Place | None:
        """The file that matches, or None.

        Raises:
            UserError: Several match.
        """
        found = [place for _, place in self.match(pattern)]
        if len(found) > 1:
            raise twice(found[0], found[1])
        return found[0] if found else None

    def by_name(self, pattern: str) -> dict[str, Place]:
        """The files that match, by the pattern's groups joined with ``/``.

        Raises:
            UserError: Two files have the same groups.
        """
        result: dict[str, Place] = {}
        for match, place in self.match(pattern):
            key = "/".join(match.groups())
            if key in result:
                raise twice(result[key], place)
            result[key] = place
        return result


def twice(one: Place, other: Place) -> UserError:
    """The complaint about two files where there should be one."""
    return UserError("dataset", one, f"is the same file as {other}; name one of them with --source")
