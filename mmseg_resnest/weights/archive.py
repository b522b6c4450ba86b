# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The one checkpoint in a published .zip, unpacked without trusting the archive."""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from .convert import list_keys
from .hashes import AGAIN

#: The most that a checkpoint inside a .zip may be, bytes. The largest published one is 0.6 GB.
MAX_UNPACKED_BYTES = 8 << 30
#: Trained weights pack by a tenth; a file that unpacks to a hundred times its size is a bomb.
MAX_RATIO = 100
#: Below this size the ratio does not matter.
RATIO_FLOOR = 64 << 20
_CHUNK = 1 << 20
_IN_ZIP = (".pth", ".pt", ".params", ".safetensors")


def open_archive(file: BinaryIO, label: str) -> zipfile.ZipFile:
    """Opens a .zip.

    Raises:
        UserError: It is none, or damaged.
    """
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{label}: the file is truncated or damaged ({error}): {AGAIN}") from error


def is_torch_archive(archive: zipfile.ZipFile) -> bool:
    """Whether a .zip is what ``torch.save`` writes."""
    return any(name.count("/") == 1 and name.endswith("/data.pkl") for name in archive.namelist())


def _safe_member(name: str) -> bool:
    return not (
        name.startswith(("/", "~"))
        or "\\" in name
        or ":" in name
        or "\0" in name
        or ".." in name.split("/")
    )


def unpack(archive: zipfile.ZipFile, size: int, label: str, target: BinaryIO) -> str:
    """Writes the one checkpoint of a .zip to an open file; no name of the archive becomes a path.

    Args:
        archive: The open archive.
        size: Its size, bytes.
        label: How errors call it.
        target: Where the checkpoint goes; what was written before an error stays there.

    Returns:
        The checkpoint's name in the archive.

    Raises:
        UserError: Paths that would leave their folder, links, more or less than one checkpoint, a
            password, an archive that unpacks to far more than its size, damage.
        OSError: ``target`` cannot be written.
    """
    entries = archive.infolist()
    unsafe = [entry.filename for entry in entries if not _safe_member(entry.filename)]
    unsafe += [entry.filename for entry in entries if stat.S_ISLNK(entry.external_attr >> 16)]
    if unsafe:
        raise UserError(
            f"{label}: refused, it would unpack outside its folder: "
            f"{list_keys(map(repr, unsafe))}; {AGAIN}"
        )
    files = [e for e in entries if not e.is_dir() and not e.filename.startswith("__MACOSX/")]
    if len(files) != 1 or Path(files[0].filename).suffix not in _IN_ZIP:
        raise UserError(
            f"{label}: a .zip must hold one checkpoint ({', '.join(_IN_ZIP)}) and nothing else, "
            f"this one holds {list_keys(e.filename for e in files) or 'nothing'}: unpack it and "
            "give the path of the checkpoint"
        )
    entry = files[0]
    if entry.flag_bits & 1:
        raise UserError(f"{label}: it is locked with a password: unpack it first")
    limit = max(RATIO_FLOOR, MAX_RATIO * min(size, max(entry.compress_size, 1)))
    if entry.file_size > min(limit, MAX_UNPACKED_BYTES):
        raise UserError(
            f"{label}: refused, {size} bytes would unpack to {entry.file_size}, which weights do "
            f"not; {AGAIN}"
        )
    try:
        with archive.open(entry) as source:
            written = 0
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > entry.file_size:
                    raise zipfile.BadZipFile("more data than announced")
                target.write(chunk)
        if written != entry.file_size:
            raise zipfile.BadZipFile("less data than announced")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{label}: the archive is damaged ({error}): {AGAIN}") from error
    return entry.filename
