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
    prepared: bool = False,
) -> list[Problem]:
    """Whether ``reduce_zero_label``, ``ignore_index`` and the classes fit the labels of a split.

    ``counts`` are the (256,) pixels of each value, one array a label file; ``complete`` says
    whether they are those of all its label files, ``prepared`` whether ``prepare-data`` made these.
    """
    if not counts or plan.planes is not None:  # the loader refuses bits of no class
        return []
    occurs = np.stack(counts) > 0
    files = len(occurs)
    present = set(np.flatnonzero(occurs.any(axis=0)).tolist())
    number = plan.num_classes
    wrong = plan.out_of_range(occurs.sum(axis=0, dtype=np.int64))
    values = sorted({*present, *range(number + 1)})
    identity = bool((plan.table[values] == values).all())
    reduce_key = f"reduce_zero_label of {name} ({split})"
    ignore_key = f"ignore_index of {name} ({split})"
    if number == 1:
        return [_one_class(present, plan, name, split)]
    problems = []
    two_values = present == {0, 255} and not prepared

    def left(new: Mapping[int, int]) -> int:
        """How many classes would occur, were the labels changed so."""
        return len({new.get(label, label) for label in present} & set(range(number)))

    # Without a 0 nothing is unlabelled: then all the others must be there to tell.
    shifted = 0 in present or set(range(1, number)) <= present
    one_less = {label: label - 1 if label else 255 for label in range(number + 1)}
    if wrong == [number] and shifted and identity and left(one_less) > 1:
        share = int(occurs[:, number].sum())
        low, unlabelled = (0, "0 seems to be unlabelled and ") if 0 in present else (1, "")
        what = f"is False, but the labels run from {low} to {number} ({number} in {share} of "
        what += f"{files} files) with {number} classes: {unlabelled}1 the first class"
        remedy = "set reduce_zero_label=True"
        if 0 in present:
            remedy += "; if 0 is a class, such as the background, name it before the others and "
            remedy += f"set num_classes={number + 1}"
        remedy += f"; if {number} is the void label, {_map_labels({number: 255})}"
        problems.append(Problem("reduce_zero_label", reduce_key, what, split, remedy=remedy))
    elif number == 2 and len(present) == 2 and (wrong or two_values) and identity:
        codes = {label: k for k, label in enumerate(sorted(present)) if label != k}
        what = f"hold {' and '.join(map(str, sorted(present)))} only: they seem to be masks of two "
        what += "values"
        what += f", of which 255 is ignored ({plan.ignore_index})" if 255 in present else ""
        key = f"label maps of {name} ({split})"
        remedy = f"save the masks with 0 and 1, or {_map_labels(codes)}"
        problems.append(Problem("ignore_index", key, what, split, remedy=remedy))
    elif len(wrong) == 1 and occurs[:, wrong[0]].sum() * 2 >= files and left({}) > 1:
        (value,) = wrong
        what = f"the loss ignores {plan.ignore_index}, but {int(occurs[:, value].sum())} of "
        what += f"{files} files hold {value}, which is not a class: it seems to be the void label"
        remedy = _map_labels({value: plan.ignore_index})
        problems.append(Problem("ignore_index", ignore_key, what, split, remedy=remedy))

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

    return problems


def _map_labels(labels: Mapping[int, int]) -> str:
    return f"give the data set (of type CustomDataset) label_map={dict(labels)}"


def _one_class(present: set[int], plan: ReadPlan, name: str, split: str) -> Problem:
    """One class alone: every label that counts is the same."""
    shown = ", ".join(map(str, sorted(present)[:5])) + (", ..." if len(present) > 5 else "")
    what = f"there is one, which leaves nothing to tell it from; the label maps hold {shown}"
    remedy = "name two classes, first what is not of the class (background), and set num_classes=2 "
    remedy += "in the heads (and for one output with a sigmoid out_channels=1 and use_sigmoid=True "
    remedy += "in their losses)"
    if plan.table[0] == 255:
        remedy += "; set reduce_zero_label=False"
    if present == {0, 255}:
        remedy += f"; {_map_labels({255: 1})}"
    return Problem("num_classes", f"classes of {name} ({split})", what, split, remedy=remedy)


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
    pixels: Mapping[str, NDArray[np.int64]], classes: Sequence[str], name: str, remedy: str = ""
) -> list[Problem]:
    """Classes that occur in no split, or only in those that are not trained on.

    ``pixels`` are the (C,) pixels of each class, by split; ``remedy`` is another than the rules'.
    """
    untrained, never = [], []
    for k, label in enumerate(classes):
        holders = [split for split, counts in pixels.items() if counts[k]]
        key = f"class {label} of {name}"
        if not holders:
            what = f"occurs in no label map of {' and '.join(pixels)}"
            never.append(Problem("class_never", key, what, remedy=remedy))
        elif "train" in pixels and "train" not in holders:
            what = f"occurs in {' and '.join(holders)} but not in train"
            untrained.append(Problem("class_only_val", key, what, remedy=remedy))
    return untrained + never if pixels else []
