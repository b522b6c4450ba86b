# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Counting the pixels of each class in the label maps of a data set of one's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ...io.parallel import in_parallel
from .labels import indices
from .planes import count_planes
from .samples import IGNORED


def count_pixels(
    folder: Path, names: Sequence[str], processes: int, split: str, planes: int | None
) -> tuple[Counter[int], list[str], Counter[str]]:
    """Pixels of each label, the names of images that have none of any class, and which labels.

    ``planes`` is the number of classes that may overlap, None of ones that exclude each other.
    The last is how many images have which labels, as text, of those with 0, 1 and 255 alone.
    """
    total: Counter[int] = Counter()
    held: Counter[str] = Counter()
    unlabelled = []
    work = partial(_histogram, folder / "annotations", planes)
    for name, counts in in_parallel(work, names, processes, f"count {split}"):
        total.update(counts)
        if set(counts) <= {IGNORED}:
            unlabelled.append(name)
        if set(counts) <= {0, 1, IGNORED}:
            held[" ".join(map(str, sorted(counts)))] += 1
    return total, sorted(unlabelled), held


def _histogram(folder: Path, planes: int | None, name: str) -> tuple[str, dict[int, int]]:
    file = folder / f"{name}.png"
    values = indices(file.read_bytes(), file)
    if planes is not None:
        return name, count_planes(values, planes)
    counts = np.bincount(values.reshape(-1), minlength=256)
    return name, {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
