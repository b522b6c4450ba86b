# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The one checkpoint in a published .zip, unpacked without trusting the archive."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from ..io.contained import is_contained_member
from .hashes import AGAIN
from .state_dict import list_keys
from .zip_directory import DEFLATED, STORED, Member

#: The most that a checkpoint inside a .zip may be, bytes. The largest published one is 0.6 GB.
MAX_UNPACKED_BYTES = 8 << 30
#: Trained weights pack by a tenth; a file that unpacks to a hundred times its size is a bomb.
MAX_RATIO = 100
#: Below this size the ratio does not matter.
RATIO_FLOOR = 64 << 20
_CHUNK = 1 << 20
_IN_ZIP = (".pth", ".pt", ".params", ".safetensors")


def is_torch_archive(members: Sequence[Member]) -> bool:
    """Whether a .zip is what ``torch.save`` writes."""
    return any(m.name.count("/") == 1 and m.name.endswith("/data.pkl") for m in members)


def unpack(file: BinaryIO, members: Sequence[Member], label: str, target: BinaryIO) -> str:
    """Writes the one checkpoint of a .zip to an open file; no name of the archive becomes a path.

    Returns the checkpoint's name in the archive. What was written before an error stays.

    Raises:
        UserError: Paths that would leave their folder, links, more or less than one checkpoint, a
            password, an archive that unpacks to far more than its size, damage.
        OSError: ``target`` cannot be written.
    """
    unsafe = [m.name for m in members if m.link or not is_contained_member(m.name)]
    if unsafe:
        message = f"refused: it would unpack outside its folder: {list_keys(unsafe)}; {AGAIN}"
        raise UserError("unsafe-path", label, message)
    files = [m for m in members if not m.is_folder and not m.name.startswith("__MACOSX/")]
    if len(files) != 1 or Path(files[0].name).suffix not in _IN_ZIP:
        message = f"a .zip must hold one checkpoint ({', '.join(_IN_ZIP)}) and nothing else, this "
        message += f"one holds {list_keys(m.name for m in files) or 'nothing'}; unpack it yourself"
        raise UserError("format", label, message)
    member = files[0]
    if member.encrypted or member.method not in (STORED, DEFLATED):
        what = "locked with a password" if member.encrypted else "compressed by an unknown method"
        raise UserError("format", label, f"it is {what}; unpack it yourself")
    limit = max(RATIO_FLOOR, MAX_RATIO * max(member.packed, 1))
    if member.size > min(limit, MAX_UNPACKED_BYTES):
        message = f"refused: {member.packed} bytes would unpack to {member.size}; {AGAIN}"
        raise UserError("too-large", label, message)
    problem = _copy(file, member, target)
    if problem:
        raise UserError("corrupt", label, f"the archive is damaged ({problem}); {AGAIN}")
    return member.name


def _copy(file: BinaryIO, member: Member, target: BinaryIO) -> str | None:
    """Unpacks one member; returns what is wrong with it, None if it is valid."""
    file.seek(member.offset)
    written = crc = 0
    try:
        for piece in _pieces(file, member):
            written += len(piece)
            if written > member.size:
                return "more data than announced"
            crc = zlib.crc32(piece, crc)
            target.write(piece)
    except zlib.error as error:
        return str(error)
    if written != member.size:
        return "less data than announced"
    return None if crc == member.crc else "its checksum does not fit"


def _pieces(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """The data of a member, unpacked, in pieces of bounded size."""
    decompress = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == DEFLATED else None
    left = member.packed
    while data := file.read(min(_CHUNK, left)):
        left -= len(data)
        if decompress is None:
            yield data
            continue
        while data and not decompress.eof:
            yield decompress.decompress(data, _CHUNK)
            data = decompress.unconsumed_tail
    if decompress is not None:
        yield decompress.flush()
