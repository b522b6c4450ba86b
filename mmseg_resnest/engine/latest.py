# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which checkpoint of a folder a run continues from, and whether a file is what was saved.

Order is by progress, not by the clock of the machine. The comment of a file, see
:mod:`mmseg_resnest.engine.saving`, says which run it is of (``run_id``, made at the first start of
the run and kept by every later one), the number of the start that wrote it (``start``, above those
of all checkpoints that were in the folder then) and the iteration.

* Of several runs in a folder, the one that ``last_checkpoint`` names goes on; without it, the one
  with the highest ``start``. Time decides between runs that have no such number.
* Within a run the highest ``start`` and then the highest iteration counts.
* ``last_checkpoint`` counts by its file name alone: the folder may have been moved, and a text in
  it must not lead to files elsewhere. Links, pipes and devices are passed over unopened.
* Files without an identity, of other programs and older versions, are one run for each form of
  name (``iter_7.pth``, ``epoch_7.pth``): first what ``last_checkpoint`` names, then by iteration.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mmseg_resnest.engine.checkpoint_schema import RUN_ID
from mmseg_resnest.engine.checkpoint_values import is_integer, is_number
from mmseg_resnest.engine.saving import MAGIC, POINTER
from mmseg_resnest.errors import UserError
from mmseg_resnest.io.json_files import parse_json
from mmseg_resnest.io.text import printable
from mmseg_resnest.weights.zip_directory import STORED, Member, read_directory

__all__ = ["latest_valid_checkpoint", "next_start", "verify_checkpoint"]

_END = struct.Struct("<4s4H2LH")  # the end of a .zip file, up to the comment
_CHUNK = 1 << 20
_LONGEST_COMMENT = 2048
_LONGEST_PATH = 4096


@dataclass(frozen=True)
class _Comment:
    """What the comment of a checkpoint says."""

    length: int  # of what the checksum covers first, from the start of the file
    sealed: bytes  # what it covers after that: the comment up to the checksum
    sha256: str
    iteration: int
    saved: float
    run_id: str  # empty in the files of older versions
    start: int


@dataclass(frozen=True)
class _Candidate:
    """A file and its place in the order; see the top of this module."""

    path: Path
    run: str
    start: int
    iteration: int
    saved: float


# --- one file -------------------------------------------------------------------------------


def _read_comment(file: BinaryIO) -> _Comment | None:
    """The comment of a checkpoint; None where there is none that a run has written."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _LONGEST_COMMENT - _END.size)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + _END.size:
        return None
    comment = tail[at + _END.size :]
    if _END.unpack_from(tail, at)[-1] != len(comment) or not comment.startswith(MAGIC):
        return None
    try:
        record = parse_json(comment[len(MAGIC) :], "the comment of a checkpoint")
    except UserError:
        return None
    return _check_comment(record, comment, start + at + _END.size - 2)


def _check_comment(record: Any, comment: bytes, length: int) -> _Comment | None:
    if not isinstance(record, dict):
        return None
    sha256, saved = record.get("sha256"), record.get("saved", math.nan)
    run_id, start, iteration = (record.get(k, d) for k, d in _DEFAULTS.items())
    if (
        not isinstance(sha256, str)
        or not is_number(saved)
        or not is_integer(iteration)
        or not is_integer(start)
        or not isinstance(run_id, str)
        or (run_id and not RUN_ID.fullmatch(run_id))
    ):
        return None
    ending = f'"{sha256}"}}'.encode()
    sealed = comment[: -len(ending) + 1] if comment.endswith(ending) else b""
    if not sealed:  # of an older version
        run_id, start = "", 0
    return _Comment(length, sealed, sha256, iteration, saved, run_id, start)


_DEFAULTS: dict[str, Any] = {"run_id": "", "start": 0, "iteration": 0}


def verify_checkpoint(path: Path, foreign: bool = True) -> str | None:
    """Why a checkpoint is not whole, or None when it is.

    Its checksum is compared; a file that has none, because something else wrote it, is whole when
    all parts of the archive pass the .zip format's own check.

    Args:
        path: The file.
        foreign: Check files without a checksum too, which must then be archives.
    """
    try:
        with path.open("rb") as file:
            comment = _read_comment(file)
            if comment is None:
                return _check_archive(file) if foreign else None
            length, digest = comment.length, hashlib.sha256()
            file.seek(0)
            while length:
                chunk = file.read(min(length, _CHUNK))
                if not chunk:
                    return "is cut short"
                digest.update(chunk)
                length -= len(chunk)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    digest.update(comment.sealed)
    if digest.hexdigest() != comment.sha256:
        return "does not have the content that its checksum was made of"
    return None


def _check_archive(file: BinaryIO) -> str | None:
    file.seek(0)
    if not file.read(1):
        return "is empty"
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size))
    end = file.read()  # torch writes no comment; ours was looked for before
    if end[:4] != b"PK\5\6" or end[-2:] != b"\0\0":
        return "is cut short, damaged at its end, or no checkpoint"
    try:
        members = read_directory(file, "archive")
    except UserError as error:
        return f"is damaged or no checkpoint ({error.text})"
    if any(member.method != STORED or member.encrypted for member in members):
        return "is packed, which torch.save does not do"
    bad = next((member.name for member in members if not _is_whole(file, member)), None)
    return None if bad is None else f"is damaged in {printable(bad[:80])}"


def _is_whole(file: BinaryIO, member: Member) -> bool:
    file.seek(member.offset)
    left, crc = member.packed, 0
    while left and (chunk := file.read(min(left, _CHUNK))):
        crc = zlib.crc32(chunk, crc)
        left -= len(chunk)
    return not left and member.crc in (0, crc)  # 0: torch was told to make no checksums


# --- a folder -------------------------------------------------------------------------------


def _candidate(path: Path) -> _Candidate:
    number = re.search(r"(\d{1,15})\.pth$", path.name)
    unknown = path.name[: number.start()] if number else path.name  # the form of the name
    iteration = int(number[1]) if number else 0
    try:
        with path.open("rb") as file:
            comment = _read_comment(file)
        if comment is None:
            return _Candidate(path, unknown, 0, iteration, path.stat().st_mtime)
    except OSError:
        return _Candidate(path, unknown, 0, iteration, -math.inf)
    return _Candidate(
        path, comment.run_id or unknown, comment.start, comment.iteration, comment.saved
    )


def _is_regular(path: Path) -> bool:
    """Whether it is a file with content of its own: opening anything else may lead anywhere."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.pth") if _is_regular(path))


def _pointed(folder: Path, work_dir: Path) -> Path | None:
    """The file of either folder that ``last_checkpoint`` of the work folder names."""
    pointer = work_dir / POINTER
    if not _is_regular(pointer):
        return None
    try:
        with pointer.open("rb") as file:
            text = file.read(_LONGEST_PATH)
    except OSError:
        return None
    name = Path(os.fsdecode(text.strip())).name
    found = (place / name for place in (folder, work_dir))
    return next((path for path in found if _is_regular(path)), None)


def latest_valid_checkpoint(
    folder: Path, work_dir: Path | None = None
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The latest valid checkpoint of a run, and those that come before it but are not whole.

    The order is that of the top of this module. It depends on a clock only between runs that no
    pointer and no number of a start tells apart.

    Args:
        folder: Where the run writes its checkpoints. Those of the best scores (``best_*``), which
            hold weights only, do not count.
        work_dir: Where ``last_checkpoint`` is; default: ``folder``. The file of either folder that
            it names counts too.

    Returns:
        The file, or None; and the others with the reasons, the latest first.
    """
    found = {path for path in _checkpoints(folder) if not path.name.startswith("best_")}
    pointed = _pointed(folder, work_dir or folder)
    if pointed is not None and not pointed.name.startswith("best_"):
        found.add(pointed)
    candidates = [_candidate(path) for path in sorted(found)]
    current = next((one.run for one in candidates if one.path == pointed), None)
    runs: dict[str, tuple[bool, int, float]] = {}
    for one in candidates:
        _, start, saved = runs.get(one.run, (False, 0, -math.inf))
        runs[one.run] = (one.run == current, max(start, one.start), max(saved, one.saved))

    def order(one: _Candidate) -> tuple[Any, ...]:
        named = one.start == 0 and one.path == pointed
        return (runs[one.run], one.run, named, one.start, one.iteration, one.saved, one.path.name)

    skipped: list[tuple[Path, str]] = []
    for one in sorted(candidates, key=order, reverse=True):
        reason = verify_checkpoint(one.path)
        if reason is None:
            return one.path, skipped
        skipped.append((one.path, reason))
    return None, skipped


def next_start(folder: Path) -> int:
    """The number of the next start in a folder: one above those of all checkpoints in it.

    Args:
        folder: Where a run writes its checkpoints; need not exist.
    """
    return 1 + max((_candidate(path).start for path in _checkpoints(folder)), default=0)
