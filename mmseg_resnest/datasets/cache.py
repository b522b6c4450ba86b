# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The fast cache: decoded images and label maps beside a data set, read without decoding.

``mmseg-resnest prepare-data DATASET --cache`` writes it into the folder ``.mmseg_cache`` of the
data set. The loading transforms (``loading``) take an image from there when there is one, and from
its file otherwise; the pixels are the same. An entry is one file: a header of 64 bytes, then the
pixels as they lie in memory. It is mapped, not read: a transform that cuts out a part reads only
the rows of that part. Entries remember size and modification time of their file, and one whose file
has changed since is not used.
"""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.logging import print_log

from ..errors import UserError
from ..io.json_files import read_json
from .decode import Pixels, decode_image, read_local

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
    """An entry of the cache.

    Args:
        pixels: (H, W, C) or (H, W).
        source: State of the file that was decoded, taken before it was read.

    Returns:
        The entry.
    """
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
    """The pixels of an entry, mapped into memory; changing them changes no file.

    Args:
        entry: File in the cache.
        source: The image or label file.
        check: Compare the CRC-32, which reads everything.

    Returns:
        (H, W, C) or (H, W); None when there is no entry, it is damaged, or the file has changed
        since.
    """
    try:
        status = os.stat(source)
        with open(entry, "rb") as stream:
            raw = stream.read(_HEADER.size)
            magic, version, height, width, channels, crc, size, mtime = _HEADER.unpack(raw)
            shape = (height, width, channels) if channels else (height, width)
            count = height * width * (channels or 1)
            known = (magic, version) == (_MAGIC, _VERSION)
            whole = os.fstat(stream.fileno()).st_size == _OFFSET + count
            fresh = (size, mtime) == (status.st_size, status.st_mtime_ns)
            if not (known and whole and fresh):
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
    """Where the entry of a file, given by its path in the data set's folder, lies."""
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
            "dataset",
            f"cache_dir {cache}",
            "not a cache; write one with mmseg-resnest prepare-data DATASET --cache",
        ) from error


_said: set[str] = set()


def _say_stale(cache: str, example: str) -> None:
    """Tells, once for each cache in a process, that entries of it are not used."""
    if cache in _said:
        return
    _said.add(cache)
    print_log(
        f"{example} has changed since the cache {cache} was written, or its entry is damaged; such"
        " files are decoded: run mmseg-resnest prepare-data DATASET --cache again",
        logger="current",
        level=30,  # warning
    )


def find_pixels(source: str, cache_dir: str | None = None) -> Pixels | None:
    """The pixels of a file from the cache, or None.

    Args:
        source: Image or label file.
        cache_dir: The cache; None looks for ``.mmseg_cache`` in the folders above the file.

    Raises:
        UserError: ``cache_dir`` is no cache.
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
        _say_stale(cache, source)
    return pixels


class ImageFromCache:
    """Mixin before a ``LoadImageFromFile``: takes the pixels from the cache where they are there.

    Args:
        cache_dir: The cache; None looks for ``.mmseg_cache`` in the folders above the image.
        **kwargs: As the class that loads; with another ``color_type``, ``imdecode_backend`` or
            ``backend_args`` than its defaults the cache is not used.
    """

    color_type: str
    imdecode_backend: str
    backend_args: dict | None
    file_client_args: dict | None
    to_float32: bool

    def __init__(self, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cache_dir = cache_dir

    def transform(self, results: dict) -> dict | None:
        """Sets ``img`` (H, W, 3), ``img_shape`` and ``ori_shape`` from ``img_path``."""
        usable = (
            self.color_type == "color"
            and self.imdecode_backend == "cv2"
            and not self.backend_args
            and not self.file_client_args
        )
        path = results["img_path"]
        pixels = find_pixels(path, self.cache_dir) if usable else None
        if usable and pixels is None:
            data = read_local(path)
            with contextlib.suppress(Exception):  # the class below has its own words, or none
                pixels = None if data is None else decode_image(data)
        if pixels is None or pixels.ndim != 3:
            loaded: dict | None = super().transform(results)  # type: ignore[misc]
            return loaded
        results["img"] = pixels.astype(np.float32) if self.to_float32 else pixels
        results["img_shape"] = pixels.shape[:2]
        results["ori_shape"] = pixels.shape[:2]
        return results


def label_table(reduce_zero_label: bool, label_map: Mapping[int, int] | None) -> Pixels:
    """What ``LoadAnnotations`` does to the numbers of a label file, as a table of 256."""
    table = np.arange(256, dtype=np.uint8)
    if reduce_zero_label:
        table[1:255] -= 1
        table[0] = 255
    if label_map:
        before = table.copy()
        for old, new in label_map.items():
            table[before == old] = new
    return table


def relabelled(
    pixels: Pixels, reduce_zero_label: bool, label_map: Mapping[int, int] | None
) -> Pixels:
    """The numbers of a label file (H, W) as ``LoadAnnotations`` changes them."""
    if not (reduce_zero_label or label_map):
        return pixels
    if not label_map:  # 0 becomes 255, which stays, and 254 is only made of 255
        less = pixels - np.uint8(1)
        less += (less == 254).view(np.uint8)
        return less
    table = label_table(reduce_zero_label, label_map)
    return cv2.LUT(pixels, table).astype(np.uint8, copy=False)


class LabelsFromCache:
    """Mixin before a ``LoadAnnotations``: takes the labels from the cache where they are there.

    Args:
        cache_dir: The cache; None looks for ``.mmseg_cache`` in the folders above the file.
        **kwargs: As the class that loads; with another ``imdecode_backend`` or ``backend_args``
            than its defaults the cache is not used.
    """

    imdecode_backend: str
    backend_args: dict | None
    reduce_zero_label: bool | None

    def __init__(self, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cache_dir = cache_dir

    def transform(self, results: dict) -> dict:
        """Sets ``gt_seg_map`` (H, W) from ``seg_map_path``, and names it in ``seg_fields``."""
        usable = self.imdecode_backend == "pillow" and not self.backend_args
        pixels = find_pixels(results["seg_map_path"], self.cache_dir) if usable else None
        if pixels is None or pixels.ndim != 2:
            loaded: dict = super().transform(results)  # type: ignore[misc]
            return loaded
        if self.reduce_zero_label is None:
            self.reduce_zero_label = results["reduce_zero_label"]
        pixels = relabelled(pixels, self.reduce_zero_label, results.get("label_map"))
        results["gt_seg_map"] = pixels
        results["seg_fields"].append("gt_seg_map")
        return results
