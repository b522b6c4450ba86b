# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Configs and other values as dotted keys with short texts, and how two such descriptions differ.

The texts are the same on any machine: what may differ between machines and changes no result is
left out (where folders lie, how many workers load the data, what is drawn and logged).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

#: Keys of a config, at any depth, that may differ between machines.
_OF_A_MACHINE = frozenset(
    {
        *("data_root", "work_dir", "out_dir", "image_counts", "visualizer", "log_level"),
        *("num_workers", "persistent_workers", "pin_memory", "prefetch_factor", "timeout"),
        *("launcher", "mp_cfg", "resource_limit"),
    }
)
_SHORT_LIST = 8  # items that are written as one text


class Difference(NamedTuple):
    """A key with two texts, None where one side lacks it."""

    key: str
    ours: str | None
    theirs: str | None


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[Difference]:
    """Keys whose texts differ; of a list of another length the list alone, without its items."""
    found = [
        Difference(key, ours.get(key), theirs.get(key))
        for key in dict.fromkeys((*ours, *theirs))
        if ours.get(key) != theirs.get(key)
    ]
    keys = {one.key for one in found}
    return [one for one in found if not any(above in keys for above in _above(one.key))]


def _above(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def flatten(value: Any, key: str = "", most: int | None = None) -> Iterator[tuple[str, str]]:
    """The dotted keys of a nested value, each with its value as text; of a data class its fields.

    A long list comes with its length first; one of more than ``most`` numbers or texts is a single
    text. Keys of a machine are left out. Of an absolute path only the name of a file counts.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if not value and key:
            yield key, "empty"
        for name, item in value.items():
            if name not in _OF_A_MACHINE:
                yield from flatten(item, f"{key}.{name}" if key else str(name), most)
    elif isinstance(value, list | tuple):
        nested = any(isinstance(item, Mapping | list | tuple) for item in value)
        if not nested and len(value) <= _SHORT_LIST:
            yield key, f"[{', '.join(map(text_of, value))}]"
            return
        if not nested and most is not None and len(value) > most:
            yield key, text_of(f"{len(value):,} items {digest(repr(list(value)))}")
            return
        yield key, f"{len(value)} items"
        for index, item in enumerate(value):
            yield from flatten(item, f"{key}.{index}", most)
    else:
        yield key, text_of(value)


def mappings(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The mappings in a nested value with their dotted keys, outer ones first.

    They may be changed on the way: what is inside one is looked up after it was yielded.
    """
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        yield key, node
        inside = node.items()
    elif isinstance(node, list | tuple):
        inside = enumerate(node)
    for name, item in list(inside):
        yield from mappings(item, f"{key}.{name}" if key else str(name))


def text_of(value: Any) -> str:
    """A value of a config as text, the same for equal values on any machine."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        if os.path.isabs(value) or value.startswith("~"):
            path = PurePath(value)
            return f"a file {path.name}" if path.suffix else "a folder"
        return repr(value)
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, bytes):
        return f"bytes {digest(value)}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(text_of, value)))}}}"
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        data = repr(value.tolist()) if value.dtype.hasobject else value.tobytes()
        return f"array {value.dtype} {value.shape} {digest(data)}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"


def shorten(text: str, most: int) -> str:
    """A printable text of at most this many characters; a digest stands for what is cut."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[: most - 40]}... {digest(text)}"


def digest(data: bytes | str) -> str:
    """16 hex digits, which differ where contents do."""
    data = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    return hashlib.blake2b(data, digest_size=8).hexdigest()
