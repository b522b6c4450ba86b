# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Making the files of a data set: in parallel, each atomically, and only what is not up to date.

The hidden folder ``.prepare`` in a data set's folder holds the record of its files
(``io.up_to_date``), a lock and half-made files. Whenever the process dies, the next run removes the
half-made files and makes those that are not recorded.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...io.contained import check_inside, check_real_folder
from ...io.folder_lock import FolderLock
from ...io.linking import is_linked, put_link
from ...io.parallel import in_parallel
from ...io.up_to_date import Record, file_state
from .places import PREPARED, check_room

_REMOVE_IT = "remove it and run the same command again"
_NO_LINK = "replace the link with a folder, or name another place with --root"


@dataclass(frozen=True)
class Item:
    """A file to be made.

    Attributes:
        target: Its path below the data set's folder, with forward slashes.
        made_from: Fingerprint of the inputs and settings that it is made from.
        link: The file that it is the same as; linked where possible.
        make: Returns its content otherwise; picklable.
        size: About how many bytes it takes, to see whether there is room; 0 for small ones.
        check: Called with ``link`` first; raises where the file is not what it should be.
    """

    target: str
    made_from: str
    link: Path | None = None
    make: Callable[[], bytes] | None = None
    size: int = 0
    check: Callable[[Path], object] | None = None


class Outputs:
    """The files in a data set's folder; use it in a ``with`` statement, which takes the lock.

    ``record`` says which files are there; ``record.about`` holds the ``facts`` (what was asked for)
    and the ``report`` of the last finished run.

    Raises:
        UserError: The folder cannot be written, another process works in it, or there are links in
            ``.prepare``, through which files elsewhere would be written or removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hidden = folder / PREPARED
        self.staging = self.hidden / "staging"
        self._tmp = self.hidden / "tmp"

    def __enter__(self) -> Outputs:
        try:
            check_real_folder(self.hidden, _REMOVE_IT)
            made = [path for path in (self.hidden, *self.hidden.parents) if not path.exists()]
            self.hidden.mkdir(parents=True, exist_ok=True)
            self._made = made
            self._check_state()
        except OSError as error:
            message = f"cannot be written ({error.strerror}); name another place with --root"
            raise UserError("not-writable", self.folder, message) from error
        self._lock = FolderLock(self.hidden, str(self.folder)).acquire()
        for part in self.hidden.glob(".record.json.*.part"):  # of a process that was killed
            part.unlink(missing_ok=True)
        self.record = Record(self.hidden / "record.json", self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._tmp, ignore_errors=True)
        self._lock.release()
        for folder in self._made:  # where nothing was put into them
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _check_state(self) -> None:
        """Refuses what is not a folder or a file of this program's; ``tmp`` may hold links."""
        check_real_folder(self._tmp, _REMOVE_IT)
        check_real_folder(self.staging, _REMOVE_IT)
        files = [path for path in self.hidden.iterdir() if path not in (self._tmp, self.staging)]
        for where, folders, names in os.walk(self.staging):
            for name in folders:
                check_real_folder(Path(where, name), _REMOVE_IT)
            files += [Path(where, name) for name in names]
        for file in files:
            if not stat.S_ISREG(file.lstat().st_mode):
                raise UserError("unsafe-path", file, f"is a link or not a file; {_REMOVE_IT}")

    def finished(self, *keys: str) -> dict[str, Any] | None:
        """The report of the last finished run, if it has these keys."""
        report = self.record.about.get("report")
        return report if isinstance(report, dict) and set(keys) <= set(report) else None

    def is_as_recorded(self, facts: dict[str, Any]) -> bool:
        """Whether a finished run had these facts and all of its files are unchanged since."""
        return (
            self.finished() is not None
            and self.record.about.get("facts") == json.loads(json.dumps(facts))
            and all(map(self.record.is_current, self.record.outputs))
        )

    def run(self, items: Sequence[Item], processes: int, link: str, label: str) -> Counter[str]:
        """Makes the files that are not up to date; ``label`` is the progress bar's.

        ``link`` is one of ``io.linking.LINKS``. Returns how many files were ``made``, ``linked``,
        ``copied`` and ``kept``.

        Raises:
            UserError: Two files have one name, a file cannot be made, there is no room for them,
                or another file lies in the way.
            KeyboardInterrupt: With advice how to go on.
        """
        names = Counter(item.target for item in items)
        for name, number in names.items():
            if number > 1:
                message = "two files of the source become this one; rename one of them"
                raise UserError("dataset", self.folder / name, message)
        todo = [item for item in items if not self._is_done(item, link)]
        counts = Counter({"kept": len(items) - len(todo)} if len(todo) < len(items) else {})
        if not todo:
            return counts
        needed = sum(item.size for item in todo if item.link is None or link == "copy")
        check_room(self.folder, needed, " or name another place with --root")
        shutil.rmtree(self._tmp, ignore_errors=True)
        try:
            self._tmp.mkdir()
            self.record.about.pop("report", None)  # it is not finished until all are made
            absent = [i.target for i in todo if not os.path.lexists(self.folder / i.target)]
            self.record.claim(absent)
            make = _Maker(self.folder, self._tmp, link)
            jobs = [(item, self._is_ours(item.target)) for item in todo]
            for item, how in in_parallel(make, jobs, processes, label):
                self.record.note(item.target, item.made_from, how)
                counts[how] += 1
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            message = f"cannot write{where} ({error.strerror}); fix that and run again to go on"
            raise UserError("not-writable", self.folder, message) from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt("run the same command again to go on") from None
        finally:
            with contextlib.suppress(UserError):
                self.record.save()
        return counts

    def _is_done(self, item: Item, link: str) -> bool:
        if not self.record.is_current(item.target, item.made_from):
            return False
        return item.link is None or is_linked(item.link, self.folder / item.target, link)

    def _is_ours(self, name: str) -> bool:
        """Whether a file may be replaced: it was made here, by this plan or by an earlier one."""
        former = self.record.about.get("former") or {}
        try:
            return name in self.record.outputs or former.get(name) == file_state(self.folder / name)
        except OSError:
            return False

    def finish(self, facts: dict[str, Any], items: Sequence[Item], report: dict[str, Any]) -> None:
        """Records a finished run and removes what only an unfinished one needs.

        Files of earlier runs stay, but where one has the name of one of these with another suffix:
        nobody could tell which of the two is meant.
        """
        outputs, stems = self.record.outputs, {_stem(item.target) for item in items}
        self.record.outputs = {item.target: outputs.pop(item.target) for item in items}
        earlier = (self.record.about.get("former") or {}).items()
        former = {name: state for name, state in earlier if name not in self.record.outputs}
        for name, (_, size, modified, _) in outputs.items():
            state = f"{size}-{modified}"
            with contextlib.suppress(OSError):
                if file_state(self.folder / name) == state and _stem(name) in stems:
                    (self.folder / name).unlink()
                else:
                    former[name] = state
        self.record.about |= {"facts": facts, "report": report, "former": former}
        self.record.save()
        shutil.rmtree(self.staging, ignore_errors=True)


def check_apart(folder: Path, sources: Sequence[Path | None], name: str) -> None:
    """Refuse a folder to write that is one of the sources' folders, or holds one."""
    for source in filter(None, sources):
        if source.resolve().is_relative_to(folder.resolve()):
            message = (
                f"would write into {folder}, which holds {source}; give another --name or --root"
            )
            raise UserError("argument", f"--name {name}", message)


def _stem(target: str) -> str:
    return os.path.splitext(target)[0]


@dataclass(frozen=True)
class _Maker:
    """Makes one file; called in the worker processes."""

    folder: Path
    tmp: Path
    link: str

    def __call__(self, job: tuple[Item, bool]) -> tuple[Item, str]:
        """Makes a file, given whether a file that is there may be replaced; returns how."""
        item, ours = job
        target = self.folder / item.target
        there = os.path.lexists(target)
        if item.link is not None and item.check is not None:
            item.check(item.link)
        as_wanted = True
        if there and item.link is not None and target.exists():
            as_wanted = is_linked(item.link, target, self.link)
            if as_wanted and os.path.samefile(target, item.link):
                return item, "kept"
        part = self.tmp / secrets.token_hex(8)
        try:
            if item.link is not None:
                how = put_link(item.link, part, self.link)
            else:
                assert item.make is not None
                how = "made"
                part.write_bytes(item.make())
            if there and target.is_file() and filecmp.cmp(part, target, shallow=False):
                ours = True
                if as_wanted:
                    return item, "kept" if item.link else how
            if there and not ours:
                message = "is there and is another file; move it or name another --root"
                raise UserError("output-exists", target, message)
            check_inside(target.parent, self.folder, "the folder of the data set", _NO_LINK)
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return item, how
