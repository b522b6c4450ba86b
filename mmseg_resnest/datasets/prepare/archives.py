# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Archives as sources: listed with care, and unpacked only where that must be."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from tqdm import tqdm

from ...errors import UserError
from ...io.contained import is_contained_member
from ...io.up_to_date import file_state
from .places import Place, check_file_size, check_room, is_hidden, list_folder

_ZIP = (".zip",)
_TAR = (".tar",)
_STREAMS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")  # readable from the start only
_BLOCK = 1 << 20
#: A member that unpacks to more than this, bytes, and to more than RATIO times its packed size, is
#: a bomb; so is a compressed tar file. Images and labels pack by less, and are smaller.
FLOOR = 256 << 20
RATIO = 200
_LARGEST_HEADER = 1 << 20  # bytes of the names and attributes before a file in a tar archive
_MOST_FILES = 1_000_000  # of an archive


@dataclass(frozen=True)
class Archive:
    """An official file, its public address (None: behind a login) and published digest, if any."""

    name: str
    url: str | None = None
    sha1: str | None = None
    md5: str | None = None

    def check(self, file: Path) -> None:
        """Compares a file with its published digest; raises UserError where it differs."""
        algorithm, wanted = ("sha1", self.sha1) if self.sha1 else ("md5", self.md5)
        digest = hashlib.new(algorithm, usedforsecurity=False)
        with _bar(file, "check") as bar, open(file, "rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() != wanted:
            message = f"its {algorithm} is {digest.hexdigest()}, not {wanted}; get it again"
            raise UserError("corrupt", file, f"{message}, or unpack it and name the folder")


def _bar(file: Path, what: str) -> Any:
    """Progress through a file, on a terminal."""
    size = file.stat().st_size
    return tqdm(total=size, unit="B", unit_scale=True, desc=f"{what} {file.name}", disable=None)


def is_archive(file: Path) -> bool:
    """Whether the name ends as an archive's."""
    return file.name.lower().endswith(_ZIP + _TAR + _STREAMS)


def check_names(names: Sequence[str], archive: Path) -> None:
    """Makes sure that no member of an archive would be written outside of its folder.

    Raises:
        UserError: A name is absolute, climbs with ``..``, has a drive, a backslash or a control
            character, or is the name of two files.
    """
    if len(names) > _MOST_FILES:
        raise UserError("too-large", archive, f"holds more than {_MOST_FILES:,} files")
    seen = set()
    for name in names:
        if not is_contained_member(name):
            raise UserError("unsafe-path", archive, f"holds the unsafe path {name!r}")
        if name in seen and not name.endswith("/"):
            raise UserError("format", archive, f"holds {name!r} twice")
        seen.add(name)


def list_archive(file: Path, staging: Path, wanted: str, official: bool = False) -> Iterator[Place]:
    """The files of an archive, hidden ones left out.

    A compressed tar file can be read from its start only, so those of its files whose names match
    the pattern ``wanted`` are unpacked into ``staging`` first; what an interrupted run unpacked is
    kept. In an ``official`` archive, whose hash is the publisher's, links are passed over rather
    than refused; nothing is unpacked through a link in either case.

    Raises:
        UserError: It is not an archive, is damaged or has unsafe paths.
    """
    name = file.name.lower()
    try:
        if name.endswith(_ZIP):
            places = _list_zip(file, official)
        elif name.endswith(_TAR):
            places = _list_tar(file, official)
        else:
            places = _unpack_stream(file, staging, wanted, official)
        for place in places:
            if not any(is_hidden(part) for part in PurePosixPath(place.name).parts):
                yield place
    except (
        *(OSError, tarfile.TarError, zipfile.BadZipFile, EOFError),
        *(zlib.error, lzma.LZMAError, ValueError, NotImplementedError, RecursionError),
    ) as error:
        message = f"cannot be read as an archive ({error}); get it again"
        raise UserError("corrupt", file, message) from error


def _list_zip(file: Path, official: bool) -> Iterator[Place]:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    check_names([info.filename for info in infos], file)
    for info in infos:
        if stat.S_ISLNK(info.external_attr >> 16):
            if official:
                continue
            raise UserError("unsafe-path", file, f"{info.filename!r} is a link")
        if info.flag_bits & 1:
            message = "is encrypted; unpack it and name the folder with --source"
            raise UserError("format", file, message)
        if info.file_size > max(FLOOR, RATIO * info.compress_size):
            sizes = f"{info.compress_size} to {info.file_size} bytes"
            message = f"{info.filename!r} unpacks from {sizes}"
            raise UserError("too-large", file, message)
        if not info.is_dir():
            yield Place(info.filename, info.file_size, f"crc{info.CRC:08x}", file, "zip")


def _list_tar(file: Path, official: bool) -> Iterator[Place]:
    stamp = file_state(file)
    with tarfile.open(file, "r:", tarinfo=_Member) as archive:
        members = _safe_members(archive.getmembers(), file, official)
        _check_end(file, archive.offset)
    for member in members:
        yield Place(
            member.name, member.size, f"{stamp}+{member.offset_data}", file, "tar",
            member.offset_data,
        )  # fmt: skip


def _check_end(file: Path, offset: int) -> None:
    """A tar file ends in blocks of zeros; tarfile accepts one that is cut short."""
    with open(file, "rb") as stream:
        stream.seek(offset)
        block = stream.read(512)
    if len(block) < 512 or any(block):
        raise UserError("corrupt", file, "ends early; get it again")


def _safe_members(
    members: Sequence[tarfile.TarInfo], file: Path, official: bool
) -> list[tarfile.TarInfo]:
    # Folders may be named twice: an archive that was added to names them again.
    check_names([f"{m.name}/" if m.isdir() else m.name for m in members], file)
    for member in members:
        if member.issparse():
            raise UserError("format", file, f"{member.name!r} has holes")
        if not (member.isfile() or member.isdir() or official):
            raise UserError("unsafe-path", file, f"{member.name!r} is a link or device")
    return [member for member in members if member.isfile()]


class _Member(tarfile.TarInfo):
    """A header of a tar file, within bounds: the library reads names of any claimed size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """Read a header."""
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _ATTRIBUTES and member.size > _LARGEST_HEADER):
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


_ATTRIBUTES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def _unpack_stream(file: Path, staging: Path, wanted: str, official: bool) -> Iterator[Place]:
    folder = staging / f"{file.name}-{file_state(file)}"
    complete = folder / ".complete"
    pattern = re.compile(wanted)
    if not complete.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        most = max(FLOOR, RATIO * file.stat().st_size)
        with (
            _bar(file, "unpack") as bar,
            open(file, "rb") as raw,
            tarfile.open(fileobj=raw, mode="r:*", tarinfo=_Member) as archive,
        ):
            seen: list[tarfile.TarInfo] = []
            for member in archive:
                seen.append(member)
                _safe_members([member], file, official)
                if member.offset_data + member.size > most:
                    message = f"unpacks to more than {RATIO} times its size"
                    raise UserError("too-large", file, message)
                bar.update(raw.tell() - bar.n)
                if len(seen) > _MOST_FILES:
                    check_names([one.name for one in seen], file)
                hidden = any(is_hidden(part) for part in PurePosixPath(member.name).parts)
                if member.isfile() and not hidden and pattern.search(member.name):
                    check_file_size(member.size, f"{file}: {member.name}")
                    check_room(folder, member.size)
                    target = folder / member.name
                    if target.is_file() and target.stat().st_size == member.size:
                        continue
                    target.parent.mkdir(parents=True, exist_ok=True)
                    part = folder / ".part"
                    with part.open("wb") as unpacked:
                        shutil.copyfileobj(
                            cast(IO[bytes], archive.extractfile(member)), unpacked, _BLOCK
                        )
                    part.replace(target)
            _safe_members(seen, file, official)
        complete.touch()
    for place in list_folder(folder):
        yield Place(
            place.name, place.size, f"{file_state(file)}/{place.name}", place.file, "staged"
        )
