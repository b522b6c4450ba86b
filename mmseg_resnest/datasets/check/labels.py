# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the labels of a whole split show that no single file can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .plan import ReadPlan
from .rules import Problem

# Below this many files, "never occurs" says nothing.
_ENOUGH_FILES = 100


def check_label_use(
    counts: Sequence[NDArray[np.int64]],
    plan: ReadPlan,
    name: str,
    split: str,
    complete: bool = True,
) -> list[Problem]:
    """Whether ``reduce_zero_label``, ``ignore_index`` and the classes fit the labels of a split.

    ``counts`` are the (256,) pixels of each value, one array a label file; ``complete`` says
    whether they are those of all its label files.
    """
    if not counts:
        return []
    occurs = np.stack(counts) > 0
    files = len(occurs)
    present = set(np.flatnonzero(occurs.any(axis=0)).tolist())
    number = plan.num_classes
    wrong = plan.out_of_range(occurs.sum(axis=0, dtype=np.int64))
    identity = bool((plan.table[: number + 1] == np.arange(number + 1)).all())
    reduce_key = f"reduce_zero_label of {name} ({split})"
    problems = []

    # Without a 0 nothing is unlabelled: then all the others must be there to tell.
    shifted = 0 in present or set(range(1, number)) <= present
    if wrong == [number] and shifted and identity:
        share = int(occurs[:, number].sum())
        low, unlabelled = (0, "0 seems to be unlabelled and ") if 0 in present else (1, "")
        what = f"is False, but the labels run from {low} to {number} ({number} in {share} of "
        what += f"{files} files) with {number} classes: {unlabelled}1 the first class"
        remedy = f"set reduce_zero_label=True; if {number} is the void label, give the data set a "
        remedy += f"label_map {{{number}: 255}}"
        problems.append(Problem("reduce_zero_label", reduce_key, what, split, remedy=remedy))
    elif len(wrong) == 1 and occurs[:, wrong[0]].sum() * 2 >= files:
        (value,) = wrong
        what = f"the loss ignores {plan.ignore_index}, but {int(occurs[:, value].sum())} of "
        what += f"{files} files hold {value}, which is not a class: it seems to be the void label"
        remedy = f"give the data set a label_map {{{value}: {plan.ignore_index}}}, or set "
        remedy += f"ignore_index={value} in the heads and the metric"
        key = f"ignore_index of {name} ({split})"
        problems.append(Problem("ignore_index", key, what, split, remedy=remedy))

    needless, severity = "", ""
    if plan.maps_zero_away and number not in present:
        if {0, 255} <= present:
            needless = "both 0 and 255 occur"
        elif set(range(number)) <= present:
            needless = f"every label from 0 to {number - 1} occurs"
            # Or the last class is rare. With two classes it comes to the same: one is trained on.
            two = complete and number == 2 and split == "train"
            severity = "" if files >= _ENOUGH_FILES or two else "warning"
    if needless:
        what = f"is True, but in {files} files {needless} and {number} never does: 0 seems to be "
        what += "a class"
        remedy = "set reduce_zero_label=False"
        problems.append(Problem("reduce_zero_label", reduce_key, what, split, severity, remedy))

    if present == {0, 255} and not plan.maps_zero_away and number > 1:
        what = "hold 0 and 255 only: they seem to be black and white masks, whose white is ignored "
        what += f"({plan.ignore_index})"
        key, remedy = f"label maps of {name} ({split})", "save the masks with 0 and 1"
        problems.append(Problem("ignore_index", key, what, split, remedy=remedy))
    return problems


def class_counts(
    counts: Sequence[NDArray[np.int64]], plan: ReadPlan
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Pixels of each class, files that hold it, and ignored pixels, after loading.

    Returns:
        (C,) pixels, (C,) files, and the number of pixels that are not a class.
    """
    number = plan.num_classes
    pixels, files = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for one in counts:
        seen = np.zeros(256, np.int64)
        np.add.at(seen, plan.table, one)
        pixels += seen
        files += seen > 0
    rest = int(pixels[number:].sum())
    if plan.ignore_index < number:
        rest += int(pixels[plan.ignore_index])
    return pixels[:number], files[:number], rest


def check_class_counts(
    pixels: Mapping[str, NDArray[np.int64]], classes: Sequence[str], name: str
) -> list[Problem]:
    """Classes that occur in no split, or only in those that are not trained on.

    ``pixels`` are the (C,) pixels of each class, by split.
    """
    untrained, never = [], []
    for k, label in enumerate(classes):
        holders = [split for split, counts in pixels.items() if counts[k]]
        key = f"class {label} of {name}"
        if not holders:
            what = f"occurs in no label map of {' and '.join(pixels)}"
            never.append(Problem("class_never", key, what))
        elif "train" in pixels and "train" not in holders:
            what = f"occurs in {' and '.join(holders)} but not in train"
            untrained.append(Problem("class_only_val", key, what))
    return untrained + never if pixels else []
