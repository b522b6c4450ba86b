# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which images to train on and which to validate on, without a leak between the two."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ...io.text import printable

# The frames of one video share a name but for the number at its end: 0001TP_006690, seq-f00930.
GROUP_PATTERN = r"(.*?)(?:[^/A-Za-z0-9]+[A-Za-z]?)?\d+"


def split_by_groups(
    names: Sequence[str], pattern: str, val_fraction: float, seed: int
) -> tuple[list[str], list[str], dict[str, int]]:
    """Splits images so that no group is in both parts.

    Images whose whole names match the pattern with an equal first group are a group, others stand
    alone. Groups are taken in an order that only their names and the seed decide, each as long as
    it brings the validation part nearer to its share.

    Returns:
        Training names, validation names, and the number of groups of each.

    Raises:
        UserError: The pattern or the fraction cannot be used, or there is only one group.
    """
    option = f"--group-pattern {pattern}"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError("argument", option, f"is not a regular expression ({error})") from error
    if compiled.groups < 1:
        raise UserError("argument", option, "has no group; put ( ) around the shared part")
    if not 0 < val_fraction < 1:
        raise UserError("argument", f"--val-fraction {val_fraction}", "must lie between 0 and 1")
    groups = defaultdict(list)
    for name in names:
        match = compiled.fullmatch(name)
        groups[match.group(1) if match else name].append(name)
    if len(groups) < 2:
        message = (
            f"puts all {len(names)} images into one group, {next(iter(groups))!r}, which cannot be"
            " split; give another pattern, '(.*)' if every image stands alone, or --val-list FILE"
        )
        raise UserError("dataset", option, message)
    target = val_fraction * len(names)
    val: list[str] = []
    chosen: set[str] = set()
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
    for group in order:
        after = len(val) + len(groups[group])
        if len(chosen) < len(groups) - 1 and abs(after - target) < abs(len(val) - target):
            val += groups[group]
            chosen.add(group)
    if not chosen:  # every group is larger than twice the share: the smallest is the nearest
        smallest = min(order, key=lambda group: len(groups[group]))
        val += groups[smallest]
        chosen.add(smallest)
    train = sorted(set(names) - set(val))
    return train, sorted(val), {"train": len(groups) - len(chosen), "val": len(chosen)}


def split_by_list(names: Sequence[str], file: Path) -> tuple[list[str], list[str], dict[str, int]]:
    """Splits images by a file that names those to validate on, one a line.

    Raises:
        UserError: The file cannot be read, or names none, all, or an image that is not there.
    """
    option = f"--val-list {file}"
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("unreadable", option, f"cannot be read ({error})") from error
    known = set(names)
    val = set()
    for line in filter(None, lines):
        line = line.replace("\\", "/")
        name = line if line in known else os.path.splitext(line)[0]
        if name not in known:
            raise UserError("argument", option, f"no image is named {printable(line)[:200]}")
        val.add(name)
    if not val or val == known:
        raise UserError("argument", option, "must name some of the images, and not all")
    return sorted(known - val), sorted(val), {}
