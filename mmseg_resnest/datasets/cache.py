# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The fast cache: decoded images and label maps beside a data set, read without decoding.

``mmseg-resnest prepare-data DATASET --cache`` writes it into the folder ``.mmseg_cache`` of the
data set. The loading transforms take the pixels from there when they can, and decode the file
otherwise; the pixels are the same. An entry is a header of 64 bytes and the pixels. It is mapped
into memory: a crop reads its own rows only. An entry holds the size and modification time of its
file, and is not used when the file has changed since.
"""

from __future__ import annotations

import functools
import json
import logging
import mmap
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from ..errors import UserError
from ..io.json_files import read_json
from .decode import Pixels

FOLDER = ".mmseg_cache"
SUFFIX = ".raw"
_INDEX = "cache.json"
_VERSION = 1
_MAGIC = b"mmsegraw"
# Magic, version, height, width, channels (0: a label map), CRC-32 of the pixels, and size and
# modification time in ns of the file; the pixels start at a multiple of a cache line.
_HEADER = struct.Struct("<8sIIIIIQQ")
_OFFSET = 64


def entry_bytes(pixels: Pixels, source: os.stat_result) -> bytes:
    """An entry for pixels (H, W, C) or (H, W); ``source`` is the file's state before reading."""
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 0
    header = _HEADER.pack(
        _MAGIC, _VERSION, height, width, channels, zlib.crc32(pixels.data), source.st_size,
        source.st_mtime_ns,
    )  # fmt: skip
    return header.ljust(_OFFSET, b"\0") + pixels.tobytes()


def read_entry(
    entry: str | os.PathLike[str], source: str | os.PathLike[str], check: bool = False
) -> Pixels | None:
    """The pixels (H, W, C) or (H, W) of an entry, mapped; changing them changes no file.

    None when there is no entry, it is damaged, or the source file has changed since. ``check``
    compares the CRC-32, which reads everything.
    """
    try:
        status = os.stat(source)
        with open(entry, "rb") as stream:
            raw = stream.read(_HEADER.size)
            magic, version, height, width, channels, crc, size, mtime = _HEADER.unpack(raw)
            shape = (height, width, channels) if channels else (height, width)
            count = height * width * (channels or 1)
            known = (magic, version) == (_MAGIC, _VERSION)
            complete = os.fstat(stream.fileno()).st_size == _OFFSET + count
            fresh = (size, mtime) == (status.st_size, status.st_mtime_ns)
            if not (known and complete and fresh):
                return None
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, struct.error, ValueError):
        return None
    pixels = np.frombuffer(mapped, np.uint8, count, _OFFSET).reshape(shape)
    return None if check and zlib.crc32(pixels.data) != crc else pixels


def index_text(root: Path) -> str:
    """Content of the file that marks a cache and names the data set's folder."""
    return json.dumps({"version": _VERSION, "root": str(root.resolve())}) + "\n"


def entry_path(cache: Path, relative: str) -> Path:
    """The entry of a file, which is given by its path relative to the data set's folder."""
    return cache / (relative + SUFFIX)


@functools.lru_cache(maxsize=4096)
def _cache_of_folder(folder: str) -> tuple[str, str] | None:
    """The cache that the files of a folder may be in, and the folder that it is a cache of."""
    for parent in (Path(folder), *Path(folder).parents):
        if (parent / FOLDER / _INDEX).is_file():
            return str(parent / FOLDER), str(parent)
    return None


@functools.lru_cache(maxsize=64)
def _root_of_cache(cache: str) -> str:
    try:
        return str(read_json(Path(cache, _INDEX), cache)["root"])
    except (UserError, KeyError, TypeError) as error:
        raise UserError(
            "format",
            f"cache_dir {cache}",
            "is not a cache; write one with mmseg-resnest prepare-data DATASET --cache",
        ) from error


@functools.lru_cache(maxsize=64)
def _warn_stale(cache: str) -> None:
    """Say once for each cache in a process that entries of it are not used."""
    print_log(
        f"{cache}: some entries are damaged or older than their files, which are decoded instead;"
        " run mmseg-resnest prepare-data DATASET --cache again",
        logger="current",
        level=logging.WARNING,
    )


def find_pixels(source: str, cache_dir: str | None = None) -> Pixels | None:
    """The pixels of an image or label file from the cache, or None.

    Without ``cache_dir``, ``.mmseg_cache`` is looked for in the folders above the file.

    Raises:
        UserError: ``cache_dir`` is not a cache.
    """
    if cache_dir is not None:
        cache, root = cache_dir, _root_of_cache(cache_dir)
    else:
        found = _cache_of_folder(os.path.dirname(os.path.abspath(source)))
        if found is None:
            return None
        cache, root = found
    relative = os.path.relpath(os.path.abspath(source), root)
    entry = os.path.join(cache, relative + SUFFIX)
    pixels = read_entry(entry, source)
    if pixels is None and os.path.exists(entry):
        _warn_stale(cache)
    return pixels
