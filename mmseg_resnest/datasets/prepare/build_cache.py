# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Writing the fast cache that ``datasets.cache`` reads."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...io.atomic import atomic_open, atomic_write
from ...io.contained import check_inside, check_real_folder
from ...io.folder_lock import FolderLock
from ...io.parallel import in_parallel
from ...io.processes import cpu_count
from ...io.remove import remove_file
from ..cache import FOLDER, SUFFIX, entry_bytes, entry_path, index_text, read_entry
from ..decode import decode_image, decode_label
from .places import check_room
from .samples import image_size

_DECODE = {"image": decode_image, "label": decode_label}
_PART = re.compile(r"\..{1,50}\.[0-9a-f]{8}\.part", re.DOTALL)  # of atomic_open
_CHANNELS = {"image": 3, "label": 1}


@dataclass(frozen=True)
class CacheReport:
    """What was written.

    ``files`` entries of ``size`` bytes hold files of ``source_size`` bytes; ``done`` counts those
    ``made``, ``kept`` and ``removed``. ``linked``: the data set's folder leads to the cache.
    """

    folder: Path
    files: int
    size: int
    source_size: int
    done: dict[str, int]
    linked: bool


def build_cache(
    data: str | os.PathLike[str],
    patterns: Iterable[tuple[str, str]],
    cache: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    verify: bool = False,
) -> CacheReport:
    """Writes the decoded images and label maps of a prepared data set.

    Each entry is read back and compared with the decoded pixels before it gets its name. Entries
    of files that have not changed are kept, those of files that are gone are removed. It can be
    killed and called again at any moment.

    Args:
        data: The data set's folder.
        patterns: ``image`` or ``label`` and a pattern of files in the folder.
        cache: Where to; None is ``.mmseg_cache`` in the folder.
        jobs: Processes; None is one a core.
        verify: Decode every file again and compare its kept entry too.

    Raises:
        UserError: There is nothing to cache, no room, or a file that cannot be decoded; or links
            in the cache lead elsewhere, or the cache is a link and ``cache`` does not name it.
    """
    data = Path(data)
    files = [
        (kind, file.relative_to(data).as_posix())
        for kind, pattern in patterns
        for file in sorted(data.glob(pattern))
    ]
    if not files:
        raise UserError("empty", data, "holds no images to cache; prepare the data set first")
    inside = data / FOLDER
    folder = Path(cache) if cache is not None else inside
    marker = folder / "cache.json"
    try:
        if cache is None:
            check_real_folder(folder, "remove it, or name the cache's folder with --cache DIR")
        folder.mkdir(parents=True, exist_ok=True)
        check_inside(marker, folder, "cache", "remove the link")
        for parent in sorted({entry_path(folder, name).parent for _, name in files}):
            check_inside(parent, folder, "cache", "remove the link")
        index = index_text(data)
        if cache is not None and not marker.is_file() and any(folder.iterdir()):
            message = "is not empty and not a cache; name another folder"
            raise UserError("output-exists", f"--cache {folder}", message)
        old = marker.read_text(encoding="utf-8") if marker.is_file() else None
        if old != index:
            # A data set that was moved takes its cache along: paths in it are relative.
            if old is not None and cache is not None:
                message = "is the cache of another data set; name another folder"
                raise UserError("output-exists", f"--cache {folder}", message)
            atomic_write(marker, index)
    except OSError as error:
        message = f"cannot be written ({error.strerror}); name another place with --cache DIR"
        raise UserError("not-writable", folder, message) from error
    with FolderLock(folder, f"--cache {folder}"):  # another one would remove what this one writes
        return _fill(data, folder, files, jobs, verify)


def _fill(
    data: Path, folder: Path, files: Sequence[tuple[str, str]], jobs: int | None, verify: bool
) -> CacheReport:
    done: Counter[str] = Counter(removed=_remove_others(folder, {name for _, name in files}))
    done.update(dict.fromkeys(("made", "kept"), 0))
    todo: Sequence[tuple[str, str]] = files
    if not verify:
        todo = [job for job in files if read_entry(*_ends(data, folder, job)) is None]
        done["kept"] = len(files) - len(todo)
    needed = 0
    for kind, name in todo:
        height, width = image_size(data / name, data / name)
        needed += height * width * _CHANNELS[kind]
    check_room(folder, needed, " or name another place with --cache DIR")
    processes = cpu_count() if jobs is None else jobs
    try:
        for how in in_parallel(partial(_write, data, folder), todo, processes, "cache"):
            done[how] += 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to go on") from None
    linked = _link(data / FOLDER, folder)
    size = sum(_ends(data, folder, job)[0].stat().st_size for job in files)
    source_size = sum((data / name).stat().st_size for _, name in files)
    return CacheReport(folder, len(files), size, source_size, dict(done), linked)


def _ends(data: Path, folder: Path, job: tuple[str, str]) -> tuple[Path, Path]:
    return entry_path(folder, job[1]), data / job[1]


def _write(data: Path, folder: Path, job: tuple[str, str]) -> str:
    entry, source = _ends(data, folder, job)
    status = source.stat()
    try:
        pixels = _DECODE[job[0]](source.read_bytes())
        assert pixels is not None
    except Exception as error:  # decoders raise whatever they please
        message = "is not an image or is damaged; put a whole copy of it there"
        raise UserError("image", source, message) from error
    kept = read_entry(entry, source, check=True)
    if kept is not None and np.array_equal(kept, pixels):
        return "kept"
    with atomic_open(entry) as part:
        part.write(entry_bytes(pixels, status))
        part.flush()
        back = read_entry(part.name, source, check=True)
        if back is None or not np.array_equal(back, pixels):
            message = f"does not read back as {source}; check the disk, or whether the file changes"
            raise UserError("corrupt", entry, message)
    return "made"


def _remove_others(folder: Path, names: set[str]) -> int:
    """Removes entries of files that are gone, and half-written ones; returns how many entries."""
    removed = 0
    for file in [*folder.rglob(f"*{SUFFIX}"), *folder.rglob("*.part")]:
        name = file.relative_to(folder).as_posix().removesuffix(SUFFIX)
        if file.suffix == SUFFIX and name not in names:
            removed += remove_file(file)
        elif _PART.fullmatch(file.name):
            remove_file(file)
    return removed


def _link(inside: Path, folder: Path) -> bool:
    """Leads from the data set's folder to a cache elsewhere; False where that cannot be."""
    if inside == folder or (inside.exists() and inside.samefile(folder)):
        return True
    try:
        if inside.is_symlink():
            inside.unlink()
        inside.symlink_to(folder.resolve())
    except OSError:
        return False
    return True
