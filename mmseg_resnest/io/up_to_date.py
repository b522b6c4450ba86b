# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Whether outputs were made from the same inputs with the same settings, as ``make`` asks.

A record beside the outputs holds each output's size, modification time and fingerprint of what it
was made from. An output is up to date if all three are as recorded. :class:`Record` is one JSON
file that is replaced atomically; :class:`Journal` is lines that several processes may append.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .atomic import atomic_write
from .json_files import parse_json, read_json

_PAUSE = 1.0  # seconds between two times that the record is written while outputs are made


def file_state(file: str | os.PathLike[str]) -> str:
    """Size and modification time of a file, as text; of a folder a digest of those of its files.

    Raises OSError.
    """
    status = os.stat(file)
    if stat.S_ISDIR(status.st_mode):
        return fingerprint(sorted([one.name, file_state(one)] for one in Path(file).iterdir()))
    return f"{status.st_size}-{status.st_mtime_ns}"


def fingerprint(*parts: object) -> str:
    """A digest of inputs and settings: another one if anything in them differs.

    They are plain values and containers, functions (by name), ``functools.partial``, data classes,
    and ``Path``, which stands for the file's path, size and modification time.

    Raises:
        TypeError: A part has another type.
        OSError: A path cannot be read.
    """
    text = json.dumps([_plain(part) for part in parts], sort_keys=True)
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _plain(value: object) -> Any:
    """The value as JSON that is equal for equal values alone."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return ["file", os.fspath(value.resolve()), file_state(value)]
    if isinstance(value, bytes):
        return ["bytes", hashlib.sha1(value, usedforsecurity=False).hexdigest()]
    if isinstance(value, dict):
        return ["map", sorted(([_plain(k), _plain(v)] for k, v in value.items()), key=repr)]
    if isinstance(value, set | frozenset):
        return ["set", sorted((_plain(item) for item in value), key=repr)]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, functools.partial):
        return ["call", _plain(value.func), _plain(value.args), _plain(value.keywords)]
    if hasattr(value, "fingerprint_parts"):
        return _plain(value.fingerprint_parts())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [_plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
        return [type(value).__name__, *fields]
    if callable(value) and hasattr(value, "__qualname__"):
        return ["function", f"{value.__module__}.{value.__qualname__}"]
    raise TypeError(f"{type(value).__name__} has no fingerprint")


class Record:
    """The record of a folder's outputs.

    Args:
        file: Where it is kept. A file that is missing or damaged is an empty record.
        folder: The folder that the names of outputs are relative to.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self.folder = file, folder
        # [fingerprint, size, mtime_ns, the caller's word for how] by name
        self.outputs: dict[str, list[Any]] = {}
        self.about: dict[str, Any] = {}  # other plain data of the caller
        self._next = 0.0
        try:
            data = read_json(file, str(file))
        except UserError:
            return
        if isinstance(data, dict):
            outputs, about = data.get("outputs"), data.get("about")
            if isinstance(outputs, dict):
                self.outputs = {name: v for name, v in outputs.items() if _is_entry(v)}
            if isinstance(about, dict):
                self.about = about

    def is_current(self, name: str, wanted: str | None = None) -> bool:
        """Whether an output is as recorded, and was made from what the fingerprint stands for."""
        entry = self.outputs.get(name)
        if entry is None or (wanted is not None and entry[0] != wanted):
            return False
        try:
            status = os.stat(self.folder / name)
        except OSError:
            return False
        return entry[1:3] == [status.st_size, status.st_mtime_ns]

    def claim(self, names: Iterable[str]) -> None:
        """Says that these outputs, which are not there yet, are about to be made here.

        After a crash they may be replaced, whatever they hold; other files may not.
        """
        for name in names:
            self.outputs.setdefault(name, ["", -1, -1, ""])
        self.save()

    def note(self, name: str, made_from: str, how: str) -> None:
        """Records an output that is finished; writes the record at most once a second."""
        status = os.stat(self.folder / name)
        self.outputs[name] = [made_from, status.st_size, status.st_mtime_ns, how]
        if time.monotonic() >= self._next:
            self.save()

    def save(self) -> None:
        """Writes the record."""
        start = time.monotonic()
        data = {"about": self.about, "outputs": self.outputs}
        atomic_write(self.file, json.dumps(data) + "\n")
        # Writing a record of many outputs takes at most a tenth of the time.
        self._next = time.monotonic() + max(_PAUSE, 9 * (time.monotonic() - start))


def _is_entry(value: object) -> bool:
    return isinstance(value, list) and [type(item) for item in value] == [str, int, int, str]


class Journal:
    """The record of outputs that one or several processes make: JSON lines, which are appended.

    Args:
        file: Where it is kept; names of outputs are relative to its folder. Lines that are damaged
            or cut off do not count.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._outputs: dict[str, list[str]] = {}  # made from what, and state, by name
        self._before = ""  # the next line
        with contextlib.suppress(FileNotFoundError):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            self._before = "\n" if lines and not lines[-1].endswith("\n") else ""
            for line in lines:
                with contextlib.suppress(UserError):
                    entry = parse_json(line, str(file))
                    outputs = entry.get("outputs") if isinstance(entry, dict) else None
                    self._outputs |= outputs if isinstance(outputs, dict) else {}

    def has(self, outputs: Mapping[Path, str]) -> bool:
        """Whether outputs are as recorded, and were made from what the fingerprints stand for."""
        try:
            return all(self._outputs.get(self._name(p)) == e for p, e in _entries(outputs))
        except OSError:
            return False

    def names(self, output: Path) -> bool:
        """Whether an output of this path was recorded, whatever has become of it."""
        return self._name(output) in self._outputs

    def claim(self, outputs: Iterable[Path]) -> None:
        """Says that these outputs are about to be made here: after a crash they may be replaced.

        Raises:
            UserError: It cannot be written.
        """
        new: dict[str, list[str]] = {self._name(p): ["", ""] for p in outputs if not self.names(p)}
        if new:
            self._append({}, new)

    def add(self, outputs: Mapping[Path, str], **facts: Any) -> None:
        """Appends a line: outputs that are finished, with fingerprints, and other plain data.

        Raises:
            UserError: It cannot be written.
        """
        self._append(facts, {self._name(path): entry for path, entry in _entries(outputs)})

    def _append(self, facts: Mapping[str, Any], outputs: dict[str, list[str]]) -> None:
        self._outputs |= outputs
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(self._before + json.dumps({**facts, "outputs": outputs}) + "\n")
        except OSError as error:
            raise UserError("not-writable", self.file, f"{error.strerror}") from error
        self._before = ""

    def _name(self, output: Path) -> str:
        return os.path.relpath(output, self.file.parent)


def _entries(outputs: Mapping[Path, str]) -> list[tuple[Path, list[str]]]:
    return [(path, [made_from, file_state(path)]) for path, made_from in outputs.items()]
