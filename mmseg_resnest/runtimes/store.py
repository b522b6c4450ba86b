# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Files that are made from a network, kept by what they were made from.

``engines`` in the folder of the downloads holds a folder for each network, named by a digest of its
content: files, and a record of their SHA-256 and of what was found out about them. What is missing,
damaged or cut off is made again. The folders that were used last stay, the others are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..io.atomic import atomic_path, atomic_write
from ..io.json_files import parse_json
from ..io.waiting_lock import wait_for_folder
from ..weights.download import cache_folder
from ..weights.hashes import hex_digests

__all__ = ["MOST_ENTRIES", "Entry", "entry_of", "store_folder"]

#: Networks that are kept.
MOST_ENTRIES = 16
_RECORD = "record.json"


def store_folder() -> Path:
    """Where the files are kept; it may be removed at any time."""
    return cache_folder() / "engines"


class Entry:
    """The files of one network, while its folder is held; see :func:`entry_of`.

    ``facts`` is plain data of the caller, kept with :meth:`save`: of each kind what is known, by
    what it is about, a text of parts with ", " between them. A part that is the name of a file says
    that it is about this file. What is known may be of any type: records get damaged.

    Args:
        folder: The folder.
        spare: Gives another folder, empty, in place of one that cannot be written for this
            reason; or raises the reason.
        keeps: Whether the record is written.
    """

    def __init__(
        self, folder: Path, spare: Callable[[UserError], Path], keeps: bool = True
    ) -> None:
        self.folder, self._spare, self._keeps = folder, spare, keeps
        self._files: dict[str, dict[str, str]] = {}
        self.facts: dict[str, Any] = {}
        with contextlib.suppress(UserError, OSError, AttributeError):
            record = parse_json((folder / _RECORD).read_bytes(), _RECORD)
            files, facts = record.get("files"), record.get("facts")
            if isinstance(files, dict) and isinstance(facts, dict):
                self._files = files
                self.facts = {kind: one for kind, one in facts.items() if isinstance(one, dict)}

    def has(self, name: str) -> bool:
        """Whether a file is there, with all that belongs to it, as it was made."""
        files = self._files.get(name)
        return isinstance(files, dict) and bool(files) and all(
            _digest(self.folder / file) == digest for file, digest in files.items()
        )  # fmt: skip

    def file(self, name: str, make: Callable[[Path], object]) -> Path:
        """The path of a file; ``make`` writes it to the path that it gets if it is not there.

        What ``make`` writes beside it belongs to it. A process that is killed meanwhile leaves
        nothing that would be taken for the file.

        Raises:
            UserError: The folder cannot be written, or the disk is full.
        """
        if not self.has(name):
            try:
                self._make(name, make)
            except UserError as error:
                if error.code != "not-writable":
                    raise
                if self.folder.is_dir():  # else somebody has removed it meanwhile
                    self._leave(error)
                self._make(name, make)
        return self.folder / name

    def _make(self, name: str, make: Callable[[Path], object]) -> None:
        self.remove(name)
        with atomic_path(self.folder / name) as part:
            make(part)
            made = {one.name: _digest(one) or "" for one in part.parent.iterdir()}
        self._files[name] = made
        self.save()

    def _leave(self, error: UserError) -> None:
        """Go on in another folder, once."""
        if not self._keeps:
            raise error
        self.folder = self._spare(error)
        self._files, self._keeps = {}, False

    def remove(self, start: str) -> None:
        """Remove the files whose names start so, and what is known about them."""
        for file in self.folder.glob(f"{start}*"):
            _remove(file)
        self._files = {k: files for k, files in self._files.items() if not k.startswith(start)}
        self.facts = {
            kind: {
                about: fact
                for about, fact in known.items()
                if not any(part.startswith(start) for part in about.split(", "))
            }
            for kind, known in self.facts.items()
        }

    def save(self) -> None:
        """Write the record, if anything is kept."""
        if not self._keeps:
            return
        record = {"files": self._files, "facts": self.facts}
        text = json.dumps(record, indent=1, sort_keys=True)
        atomic_write(self.folder / _RECORD, f"{text}\n")


@contextlib.contextmanager
def entry_of(
    key: str,
    waits: Callable[[], object] = lambda: None,
    loses: Callable[[UserError], object] | None = None,
) -> Iterator[Entry]:
    """The entry of a content; a process that comes later waits.

    Args:
        key: The digest of the content.
        waits: Is called where another process has it, before the wait.
        loses: Is called with the reason where files cannot be kept; they are then made in a
            temporary folder, which is gone at the end of the ``with``. None: that is an error.

    Raises:
        UserError: The folder cannot be written, and with ``loses`` no temporary one either.
    """
    with contextlib.ExitStack() as stack:

        def spare(error: UserError) -> Path:
            error = _elsewhere(error)
            if loses is None:
                raise error
            try:
                made = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            except OSError:
                raise error from None
            loses(error)
            return Path(stack.enter_context(made))

        try:
            folder = _made(key)
        except UserError as error:
            yield Entry(spare(error), spare, keeps=False)
            return
        with wait_for_folder(folder, waits) as held:
            if held:
                for left in folder.glob(".*"):  # by a process that was killed
                    _remove(left)
                if not (folder / _RECORD).is_file():
                    _remove(folder / _RECORD)
            with contextlib.suppress(OSError):
                os.utime(folder)
            yield Entry(folder, spare)
        _remove_old(folder.parent)


def _made(key: str) -> Path:
    folder = store_folder() / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"cannot be made ({error.strerror or error})"
        raise UserError("not-writable", folder, said) from error
    return folder


def _elsewhere(error: UserError) -> UserError:
    """Where files can be written, if that is what failed."""
    if error.code != "not-writable":
        return error
    what = error.message.partition("; ")[0]
    said = f"{what}; make room, or name another cache in MMSEG_RESNEST_CACHE"
    return UserError(error.code, error.subject, said)


def _remove_old(root: Path) -> None:
    with contextlib.suppress(OSError):
        folders = [one for one in root.iterdir() if one.is_dir()]
        folders.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in folders[MOST_ENTRIES:]:
            shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it can be removed."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def _digest(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            return hex_digests(opened, "sha256")[0]
    except (OSError, ValueError):  # not the name of a file
        return None
