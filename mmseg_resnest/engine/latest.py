# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The latest valid checkpoint of a folder, by progress and not by the clock of the machine.

The comment of a file says which run it is of, the number of the start that wrote it, and the
iteration; docs/reliability.md gives the order. ``last_checkpoint`` counts by its file name alone:
a text in it must not lead to files elsewhere. Links, pipes and devices are skipped unopened. Files
without a comment, of other programs and older versions, are one run for each form of name
(``iter_7.pth``, ``epoch_7.pth``).
"""

from __future__ import annotations

import math
import os
import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError
from ..io.json_files import parse_json
from ..io.text import printable
from ..weights.zip_directory import STORED, Member, read_directory
from .checkpoint_schema import RUN_ID
from .checkpoint_values import is_integer, is_number
from .saving import BEST_LINK, MAGIC, POINTER

_CHUNK = 1 << 20
_LONGEST_COMMENT = 2048
_LONGEST_PATH = 4096
_SAVED = re.compile(r"^(best_.+|iter|epoch)_\d+\.pth$")


@dataclass(frozen=True)
class _Candidate:
    """A file and its place in the order, see docs/reliability.md."""

    path: Path
    run: str
    start: int
    iteration: int
    saved: float


def verify_checkpoint(path: Path) -> str | None:
    """Why a checkpoint is corrupt, or None when it is valid: every record passes its checksum."""
    try:
        with path.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                return "is empty"
            members = read_directory(file, "archive")
            if any(member.method != STORED or member.encrypted for member in members):
                return "is compressed, which torch.save does not do"
            bad = next((member.name for member in members if not _is_intact(file, member)), None)
    except UserError:
        return "is truncated, corrupt or not a checkpoint"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if bad is None else f"is corrupt: {printable(bad[:80])} does not fit its checksum"


def _is_intact(file: BinaryIO, member: Member) -> bool:
    file.seek(member.offset)
    left, crc = member.packed, 0
    while left and (chunk := file.read(min(left, _CHUNK))):
        crc = zlib.crc32(chunk, crc)
        left -= len(chunk)
    return not left and member.crc in (0, crc)  # 0: torch made no checksums


def _comment(file: BinaryIO) -> dict[str, Any] | None:
    """The comment of a checkpoint; None where no run of this package wrote one."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_COMMENT))
    tail = file.read()
    at = tail.rfind(MAGIC)
    if at < 0:
        return None
    try:
        note = parse_json(tail[at + len(MAGIC) :], "the comment of a checkpoint")
    except UserError:
        return None
    note = {"run_id": "", "start": 0, "iteration": 0, **note} if isinstance(note, dict) else {}
    valid = (
        is_number(note.get("saved"))
        and is_integer(note["iteration"])
        and is_integer(note["start"])
        and isinstance(note["run_id"], str)
        and (not note["run_id"] or RUN_ID.fullmatch(note["run_id"]))
    )
    return note if valid else None


def _candidate(path: Path) -> _Candidate:
    number = re.search(r"(\d{1,15})\.pth$", path.name)
    form = path.name[: number.start()] if number else path.name
    iteration = int(number[1]) if number else 0
    try:
        with path.open("rb") as file:
            note = _comment(file)
        if note is None:
            return _Candidate(path, form, 0, iteration, path.stat().st_mtime)
    except OSError:
        return _Candidate(path, form, 0, iteration, -math.inf)
    run = note["run_id"] or form
    return _Candidate(path, run, note["start"], note["iteration"], note["saved"])


def _is_regular(path: Path) -> bool:
    """Whether it is a file with content of its own: opening anything else may lead anywhere."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def _checkpoints(folder: Path) -> set[Path]:
    return {path for path in folder.glob("*.pth") if _is_regular(path)}


def _pointed(folder: Path, work_dir: Path) -> Path | None:
    """The file of either folder that ``last_checkpoint`` of the work folder names."""
    pointer = work_dir / POINTER
    if not _is_regular(pointer):
        return None
    try:
        with pointer.open("rb") as file:
            name = Path(os.fsdecode(file.read(_LONGEST_PATH).strip())).name
    except OSError:
        return None
    return next((path for place in (folder, work_dir) if _is_regular(path := place / name)), None)


def latest_valid_checkpoint(
    folder: Path, work_dir: Path | None = None
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The latest valid checkpoint of a run, and the corrupt ones before it with the reasons.

    Checkpoints of the best scores (``best_*``), which hold weights only, do not count.
    ``last_checkpoint`` is in ``work_dir``, or in ``folder``; the file of either that it names
    counts too.
    """
    found = _checkpoints(folder)
    pointed = _pointed(folder, work_dir or folder)
    if pointed is not None:
        found.add(pointed)
    weights_only = ("best_", BEST_LINK)
    candidates = [_candidate(path) for path in found if not path.name.startswith(weights_only)]
    current = next((one.run for one in candidates if one.path == pointed), None)
    newest: dict[str, tuple[int, float]] = {}
    for one in candidates:
        newest[one.run] = max(newest.get(one.run, (0, -math.inf)), (one.start, one.saved))

    def order(one: _Candidate) -> tuple[Any, ...]:
        named = one.start == 0 and one.path == pointed
        of_run = (one.run == current, newest[one.run], one.run)
        return (*of_run, named, one.start, one.iteration, one.saved, one.path.name)

    skipped: list[tuple[Path, str]] = []
    for one in sorted(candidates, key=order, reverse=True):
        reason = verify_checkpoint(one.path)
        if reason is None:
            return one.path, skipped
        skipped.append((one.path, reason))
    return None, skipped


def written_by(path: Path) -> tuple[str, int] | None:
    """The identity of the run that wrote a checkpoint, and its iteration; None: it says neither."""
    try:
        with path.open("rb") as file:
            note = _comment(file)
    except OSError:
        return None
    return (note["run_id"], note["iteration"]) if note and note["run_id"] else None


def run_of(path: Path) -> str | None:
    """The identity of the run that wrote a checkpoint; None where the file does not say it."""
    found = written_by(path)
    return None if found is None else found[0]


def runs_of(folder: Path) -> set[str]:
    """The identities of the runs whose checkpoints are in a folder."""
    return {run for path in _checkpoints(folder) if (run := run_of(path)) is not None}


def holds_checkpoint(folder: Path) -> bool:
    """Whether a training has saved there: checkpoints, by their names or what they say."""
    return any(_SAVED.search(path.name) or run_of(path) for path in _checkpoints(folder))


def next_start(folder: Path) -> int:
    """The number of the next start in a folder: one above those of all checkpoints in it."""
    return 1 + max((_candidate(path).start for path in _checkpoints(folder)), default=0)
