# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Drawn data sets are written once: a folder is complete or absent, with any number of writers."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..io.atomic import atomic_write
from ..io.json_files import read_json
from ..io.waiting_lock import wait_for_folder


def check_range(name: str, value: int, low: int, end: int) -> None:
    """Check that an argument is from ``low`` to ``end - 1``; UserError otherwise."""
    if not low <= value < end:
        raise UserError("argument", name, f"must be from {low} to {end - 1}, not {value}")


def check_scene(seed: int, index: int, split: str, splits: Collection[str]) -> None:
    """Check which picture of a data set is to be drawn."""
    if split not in splits:
        raise UserError("argument", "split", f"must be one of {', '.join(splits)}, not {split!r}")
    check_range("seed", seed, 0, 2**64)
    check_range("index", index, 0, 2**32)


def check_counts(facts: Mapping[str, int]) -> None:
    """Check the numbers of images (``num_...``) and the ``seed`` of a data set to draw."""
    for name, value in facts.items():
        check_range(name, value, name != "seed", 2**64 if name == "seed" else 2**32)


def write_once(
    root: str | os.PathLike[str],
    name: str,
    facts: dict[str, Any],
    pictures: Mapping[str, int],
    write: Callable[[Path], None],
) -> Path:
    """Write a data set beside ``root`` and rename it at the end, unless it is there.

    A call that finds it there changes nothing; it waits for another one that is writing it.

    Args:
        root: Folder of the data set.
        name: What it is called; ``NAME.json`` holds the facts.
        facts: What it is made from.
        pictures: The number of files for each pattern.
        write: Writes it into a new folder.

    Returns:
        ``root``.

    Raises:
        UserError: It cannot be written, or something else is there.
    """
    root = Path(root)

    def is_written(root: Path) -> bool:
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return False
        with contextlib.suppress(UserError):
            found = read_json(root / f"{name}.json", str(root / f"{name}.json"))
            if found == facts and pictures == {p: len(list(root.glob(p))) for p in pictures}:
                return True
        message = f"does not hold the {name} of {facts}; remove it or choose another folder"
        raise UserError("output-exists", root, message)

    if is_written(root):
        return root
    target = root.resolve()  # a link to another disk: the rename has to happen there
    prefix = f".{target.name}.partial-"
    partial = target.with_name(prefix + secrets.token_hex(6))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with wait_for_folder(target.parent) as alone:
            if is_written(root):  # while this process waited
                return root
            if alone:  # a process that died left it
                for stale in target.parent.glob(prefix + "[0-9a-f]" * 12):
                    shutil.rmtree(stale, ignore_errors=True)
            write(partial)
            atomic_write(partial / f"{name}.json", json.dumps(facts, indent=2) + "\n")
            try:
                partial.rename(target)
            except OSError:
                if not is_written(root):  # else another process was faster
                    raise
    except OSError as error:
        message = f"cannot be written ({error.strerror or error}); choose another folder"
        raise UserError("not-writable", root, message) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root
