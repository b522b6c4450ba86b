# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The directory of a .zip, read so strictly that every reader of the format sees the same files.

Readers differ in where they look for the directory, whose sizes they believe and what they make
of bytes that belong to nothing. A file in which that could matter is refused: one directory at the
end, the first member at byte 0, no gaps, no overlaps, no name twice, local headers that agree.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import UserError
from .hashes import AGAIN

#: The largest checkpoints have some thousand members.
MAX_MEMBERS = 100_000
STORED, DEFLATED = 0, 8

_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_MAX_COMMENT = 0xFFFF
_IN_EXTRA = 0xFFFFFFFF  # a number of 32 bits that stands in the extra field, with 64
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 1 << 0, 1 << 3, 1 << 11
# what may follow a member's data: its CRC and sizes, with or without a signature, of 32 or 64 bits
_DESCRIPTORS = (12, 16, 20, 24)


class _Disagreement(Exception):
    """Readers of the format would differ about the file."""


@dataclass(frozen=True)
class Member:
    """One file of an archive, as the archive says."""

    name: str  # not a path to write to
    offset: int  # of its data in the archive, bytes
    packed: int  # size of that data, bytes
    size: int  # of what it unpacks to, bytes
    method: int  # STORED, DEFLATED or another number
    crc: int  # CRC-32 of what it unpacks to
    encrypted: bool
    link: bool  # a symbolic link

    @property
    def is_folder(self) -> bool:
        """Whether it is the entry of a folder."""
        return self.name.endswith("/")


def read_directory(file: BinaryIO, label: str) -> list[Member]:
    """The members of an archive, in the order of its directory.

    Raises:
        UserError: It is not a .zip, is damaged, or readers could disagree about it.
    """
    try:
        return _members(file)
    except _Disagreement as error:
        message = f"refused: its .zip directory is ambiguous ({error}); {AGAIN}"
        raise UserError("corrupt", label, message) from error
    except (struct.error, OSError, ValueError, IndexError) as error:
        raise UserError("corrupt", label, f"truncated or damaged ({error}); {AGAIN}") from error


def _members(file: BinaryIO) -> list[Member]:
    size = file.seek(0, 2)
    at, count, start, length = _find_directory(file, size)
    if count > MAX_MEMBERS:
        raise ValueError(f"{count} members")
    if start + length != at:
        raise _Disagreement("bytes that belong to nothing before the end record")
    if count * _ENTRY.size > length:
        raise ValueError(f"{count} members in a directory of {length} bytes")
    directory = _read(file, start, length)
    position = 0
    members: list[Member] = []
    places: list[tuple[int, int, bool]] = []
    for _ in range(count):
        member, place, position = _entry(file, directory, position, start)
        members.append(member)
        places.append(place)
    if position != length:
        raise _Disagreement("bytes that belong to nothing in the directory")
    if len({member.name for member in members}) != len(members):
        raise _Disagreement("a name twice")
    _check_places(places, start)
    return members


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int, int]:
    """Where the records of the end start, number of members, start and length of the directory."""
    first = max(0, size - _END.size - _MAX_COMMENT)
    tail = _read(file, first, size - first)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise ValueError("it has no end record")
    _, disk, directory_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    if len(tail) - at - _END.size != comment:
        raise _Disagreement("its last end record does not end the file")
    at += first
    if at >= _LOCATOR.size and _read(file, at - 4 * 5, 4) == b"PK\6\7":
        at -= _LOCATOR.size
        _, end_disk, at64, disks = _LOCATOR.unpack(_read(file, at, _LOCATOR.size))
        at -= _END64.size
        if at < 0 or at64 != at or end_disk or disks > 1:
            raise _Disagreement("its 64-bit end record is not where it should be")
        signature, rest, _, _, disk64, directory_disk64, *large = _END64.unpack(
            _read(file, at, _END64.size)
        )
        if signature != b"PK\6\6" or rest != _END64.size - 12:
            raise _Disagreement("its 64-bit end record is of another size")
        small = (disk, directory_disk, here, count, length, start)
        wide = (disk64, directory_disk64, *large)
        most = (*[0xFFFF] * 4, *[_IN_EXTRA] * 2)
        if any(s not in (w, m) for s, w, m in zip(small, wide, most, strict=True)):
            raise _Disagreement("its two end records differ")
        disk, directory_disk, here, count, length, start = wide
    if disk or directory_disk or here != count:
        raise _Disagreement("parts of it are in other files")
    return at, count, start, length


def _entry(
    file: BinaryIO, directory: bytes, position: int, end: int
) -> tuple[Member, tuple[int, int, bool], int]:
    """A member, its (start, end, whether sizes follow), and where the next entry starts."""
    fields = _ENTRY.unpack_from(directory, position)
    signature, _, _, flags, method, _, _, crc, packed, size, names, extras, comments = fields[:13]
    disk, _, attributes, offset = fields[13:]
    if signature != b"PK\1\2" or disk:
        raise ValueError("a damaged directory")
    position += _ENTRY.size
    following = position + names + extras + comments
    if following > len(directory):
        raise ValueError("a damaged directory")
    raw = directory[position : position + names]
    extra = directory[position + names : position + names + extras]
    size, packed, offset = _wide(extra, size, packed, offset)
    name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
    if not name or "\0" in name:
        raise _Disagreement("a name that ends early")
    if offset + _LOCAL.size > end:
        raise ValueError("a member beyond the end")
    local = _LOCAL.unpack(_read(file, offset, _LOCAL.size))
    data = offset + _LOCAL.size + local[9] + local[10]
    if local[0] != b"PK\3\4" or local[9] != len(raw) or data + packed > end:
        raise ValueError("a member that is not where the directory says")
    agrees = (
        _read(file, offset + _LOCAL.size, len(raw)) == raw
        and local[3] == method
        and (local[2] ^ flags) & (_ENCRYPTED | _SIZES_FOLLOW) == 0
        and all(
            theirs in (ours, _IN_EXTRA) or (theirs == 0 and flags & _SIZES_FOLLOW)
            for theirs, ours in ((local[7], packed), (local[8], size))
        )
    )
    if not agrees:
        raise _Disagreement("a member whose header differs from the directory")
    if method == STORED and packed != size and not flags & _ENCRYPTED:
        raise _Disagreement("a member of two sizes")
    encrypted, link = bool(flags & _ENCRYPTED), stat.S_ISLNK(attributes >> 16)
    member = Member(name, data, packed, size, method, crc, encrypted, link)
    return member, (offset, data + packed, bool(flags & _SIZES_FOLLOW)), following


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The numbers of an entry, with those of 64 bits from its extra field."""
    wide: list[int] | None = None
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        content = extra[position + 4 : position + 4 + length]
        if len(content) != length:
            raise _Disagreement("a damaged extra field")
        position += 4 + length
        if kind == 1:
            if wide is not None:
                raise _Disagreement("sizes twice")
            wide = [n for (n,) in struct.iter_unpack("<Q", content[: len(content) // 8 * 8])]
    if position != len(extra):
        raise _Disagreement("a damaged extra field")
    result = []
    for number in (size, packed, offset):
        if number == _IN_EXTRA:
            if not wide:
                raise _Disagreement("a size that is missing")
            number = wide.pop(0)
        result.append(number)
    return result[0], result[1], result[2]


def _check_places(places: Sequence[tuple[int, int, bool]], end: int) -> None:
    """Members follow each other from byte 0 to the directory."""
    position, follows = 0, False
    for start, stop, sizes_follow in sorted(places):
        _check_gap(start - position, follows)
        position, follows = stop, sizes_follow
    _check_gap(end - position, follows)


def _check_gap(gap: int, sizes_follow: bool) -> None:
    if gap < 0:
        raise _Disagreement("members that overlap")
    if gap and not (sizes_follow and gap in _DESCRIPTORS):
        raise _Disagreement("bytes that belong to no member")


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise ValueError("it ends early")
    return data
