# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Making the files of a data set: in parallel, each one whole or absent, and never twice.

A data set's folder gets a hidden folder ``.prepare`` with a lock, half-made files, a journal of
the files that are finished, and, when all are, a record. Whatever moment the process dies at, the
next run removes the half-made files and goes on after the journal's last line.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import secrets
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...io.atomic import atomic_write
from ...io.contained import check_inside, check_real_folder
from ...io.json_files import parse_json, read_json
from ...io.parallel import in_parallel

LINKS = ("auto", "reflink", "hard", "symlink", "copy")
_FICLONE = 0x40049409  # linux/fs.h: share a file's blocks until one of the two is written
_PATIENCE = 2.0  # seconds to wait for the lock
_REMOVE_IT = "remove it and run the same command again"
_NO_LINK = "replace the link with a folder, or name another place with --root"
_FILES = ("lock", "journal.jsonl", "record.json", "hashes.json")  # in .prepare


@dataclass(frozen=True)
class Item:
    """A file to be made.

    Attributes:
        target: Its path below the data set's folder, with forward slashes.
        key: Changes when what it is made from changes.
        link: The file that it is the same as; linked where possible.
        check: Called with ``link`` first; raises where the file is not what it should be.
        make: Returns its content otherwise; it must be possible to send it to another process.
        size: About how many bytes it takes, to see whether there is room; 0 for small ones.
    """

    target: str
    key: str
    link: Path | None = None
    make: Callable[[], bytes] | None = None
    size: int = 0
    check: Callable[[Path], object] | None = None


@dataclass(frozen=True)
class _Done:
    target: str
    key: str
    size: int
    mtime_ns: int
    how: str


class Workspace:
    """The hidden folder in which a data set's preparation keeps its state.

    Use it in a ``with`` statement: that takes the lock and clears what a dead process left.

    Args:
        folder: The data set's folder; made if it is not there.

    Raises:
        UserError: The folder cannot be written, or another process is at work in it; or there are
            links in ``.prepare``, through which files elsewhere would be written or removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hidden = folder / ".prepare"
        self.staging = self.hidden / "staging"
        self._tmp = self.hidden / "tmp"
        self._journal = self.hidden / "journal.jsonl"
        self._record = self.hidden / "record.json"
        self._lock: int | None = None
        self.journal: dict[str, _Done] = {}

    def __enter__(self) -> Workspace:
        try:
            check_real_folder(self.hidden, _REMOVE_IT)
            self.hidden.mkdir(parents=True, exist_ok=True)
            _check_regular(self.hidden / "lock")
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            self._lock = os.open(self.hidden / "lock", flags, 0o666)
        except OSError as error:
            raise UserError(
                "not-writable",
                self.folder,
                f"cannot be written ({error.strerror}); name another place with --root",
            ) from error
        with contextlib.suppress(ImportError):
            import fcntl

            # The helpers of a process that was just killed may still be dying.
            deadline = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() < deadline:
                        time.sleep(0.05)
                        continue
                    os.close(self._lock)
                    raise UserError(
                        "dataset",
                        self.folder,
                        "another process is preparing this data set; wait for it",
                    ) from None
                except OSError:  # a file system without locks
                    pass
                break
        try:
            self._check_state()
        except BaseException:
            os.close(self._lock)
            raise
        self.journal = dict(self._read_journal())
        return self

    def _check_state(self) -> None:
        """Refuses what is not a folder or a file of this program's; ``tmp`` may hold links."""
        for folder in (self._tmp, self.staging):
            check_real_folder(folder, _REMOVE_IT)
        for name in _FILES:
            _check_regular(self.hidden / name)
        for where, folders, names in os.walk(self.staging):
            for name in folders:
                check_real_folder(Path(where, name), _REMOVE_IT)
            for name in names:
                _check_regular(Path(where, name))

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._tmp, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    def _read_journal(self) -> Iterator[tuple[str, _Done]]:
        try:
            text = self._journal.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                done = _Done(*parse_json(line, str(self._journal)))
            except (UserError, TypeError):
                continue  # the line that was being written when the process died
            if [type(value) for value in astuple(done)] != [str, str, int, int, str]:
                continue
            yield done.target, done

    def is_as_recorded(self, facts: dict[str, Any]) -> bool:
        """Whether a finished run had these facts and all of its files are unchanged since."""
        record = self.record()
        if record is None or record.get("facts") != json.loads(json.dumps(facts)):
            return False
        return len(self.journal) == record["files"] and all(
            _is_unchanged(self.folder, done) for done in self.journal.values()
        )

    def record(self, *keys: str) -> dict[str, Any] | None:
        """What the last finished run wrote about itself, or None; damaged ones count as none.

        Args:
            *keys: What its report must have.
        """
        try:
            record = read_json(self._record, str(self._record))
        except UserError:
            return None
        if not isinstance(record, dict) or type(record.get("files")) is not int:
            return None
        facts, report = record.get("facts"), record.get("report")
        if not isinstance(facts, dict) or not isinstance(report, dict):
            return None
        return record if set(keys) <= set(report) else None

    def run(self, items: Sequence[Item], processes: int, link: str, label: str) -> Counter[str]:
        """Makes the files that are not there yet.

        Args:
            items: The files.
            processes: How many to make at the same time.
            link: One of ``LINKS``.
            label: Of the progress bar.

        Returns:
            How many files were ``made``, ``linked``, ``copied`` and ``kept``.

        Raises:
            UserError: Two files have one name, a file cannot be made, there is no room for them,
                or another file lies in the way.
            KeyboardInterrupt: With advice how to go on.
        """
        targets = [item.target for item in items]
        doubled = [target for target, number in Counter(targets).items() if number > 1]
        if doubled:
            raise UserError(
                "dataset", self.folder / doubled[0], "two files of the source become this one"
            )
        counts: Counter[str] = Counter()
        todo = []
        for item in items:
            done = self.journal.get(item.target)
            if done and done.key == item.key and _is_unchanged(self.folder, done):
                counts["kept"] += 1
            else:
                todo.append((item, done is not None))
        self._check_room([item for item, _ in todo], link)
        shutil.rmtree(self._tmp, ignore_errors=True)
        make = _Maker(self.folder, self._tmp, link)
        try:
            if todo:
                self._tmp.mkdir()
            self._mend_journal()
            with open(self._journal, "a", encoding="utf-8") as journal:
                for done in in_parallel(make, todo, processes, label):
                    self.journal[done.target] = done
                    journal.write(_line(done))
                    journal.flush()
                    counts[done.how] += 1
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            raise UserError(
                "dataset",
                self.folder,
                f"cannot write{where} ({error.strerror}); mend that and run the same"
                " command again to go on",
            ) from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt("run the same command again to go on") from None
        return counts

    def finish(self, facts: dict[str, Any], items: Sequence[Item], report: dict[str, Any]) -> None:
        """Writes the record of a finished run and removes what only an unfinished one needs."""
        self.journal = {item.target: self.journal[item.target] for item in items}
        lines = "".join(_line(done) for _, done in sorted(self.journal.items()))
        record = {"facts": facts, "files": len(self.journal), "report": report}
        # The journal first: a record without its journal would say what is not known.
        atomic_write(self._journal, lines)
        atomic_write(self._record, json.dumps(record, indent=1) + "\n")
        shutil.rmtree(self.staging, ignore_errors=True)

    def _mend_journal(self) -> None:
        """Ends a last line that was cut, so that the next one starts a line of its own."""
        with contextlib.suppress(FileNotFoundError), open(self._journal, "rb+") as stream:
            if stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")

    def _check_room(self, items: Sequence[Item], link: str) -> None:
        needed = sum(item.size for item in items if item.link is None or link == "copy")
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                "dataset",
                self.folder,
                f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free;"
                " make room or name another place with --root",
            )


def _check_regular(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UserError("dataset", path, f"is a link or not a file; {_REMOVE_IT}")


def _line(done: _Done) -> str:
    return json.dumps([done.target, done.key, done.size, done.mtime_ns, done.how]) + "\n"


def _is_unchanged(folder: Path, done: _Done) -> bool:
    try:
        status = os.stat(folder / done.target)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (done.size, done.mtime_ns)


class _Maker:
    """Makes one file; called in the processes."""

    def __init__(self, folder: Path, tmp: Path, link: str) -> None:
        self.folder = folder
        self.tmp = tmp
        self.link = link

    def __call__(self, job: tuple[Item, bool]) -> _Done:
        item, ours = job
        target = self.folder / item.target
        there = os.path.lexists(target)
        if item.link is not None and item.check is not None:
            item.check(item.link)
        if there and item.link and target.exists() and os.path.samefile(target, item.link):
            return self._done(item, "kept")
        part = self.tmp / secrets.token_hex(8)
        try:
            if item.link is not None:
                how = put_link(item.link, part, self.link)
            else:
                assert item.make is not None
                how = "made"
                part.write_bytes(item.make())
            if there and not ours:
                same = target.is_file() and filecmp.cmp(part, target, shallow=False)
                if not same:
                    raise UserError(
                        "output-exists",
                        target,
                        "is there already and is another file; move it away or name"
                        " another place with --root",
                    )
                return self._done(item, "kept" if item.link else how)
            check_inside(target.parent, self.folder, "the folder of the data set", _NO_LINK)
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return self._done(item, how)

    def _done(self, item: Item, how: str) -> _Done:
        status = os.stat(self.folder / item.target)
        return _Done(item.target, item.key, status.st_size, status.st_mtime_ns, how)


def put_link(source: Path, target: Path, how: str = "auto") -> str:
    """Makes ``target`` the same as ``source``, with as little space as the file system allows.

    ``auto`` tries, in this order: shared blocks (reflink: Btrfs, XFS), a hard link, a symbolic
    link, a copy.

    Args:
        source: A file.
        target: A path that does not exist.
        how: One of ``LINKS``.

    Returns:
        ``linked`` or ``copied``.

    Raises:
        UserError: ``how`` is not possible here.
    """
    real = source.resolve()
    ways: dict[str, Callable[[], object]] = {
        "reflink": lambda: _reflink(real, target),
        "hard": lambda: os.link(real, target),
        "symlink": lambda: target.symlink_to(real),
        "copy": lambda: shutil.copyfile(real, target),
    }
    for name in ways if how == "auto" else (how,):
        try:
            ways[name]()
        except OSError as error:
            target.unlink(missing_ok=True)
            if how != "auto" or name == "copy":
                raise UserError(
                    "dataset",
                    source,
                    f"{name} to {target.parent} failed ({error.strerror}); use --link auto",
                ) from error
        else:
            return "copied" if name == "copy" else "linked"
    raise AssertionError("a copy either succeeds or raises")


def _reflink(source: Path, target: Path) -> None:
    try:
        import fcntl
    except ImportError as error:
        raise OSError(0, "not on this system") from error
    with open(source, "rb") as reader, open(target, "xb") as writer:
        fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
