# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The classes of a data set of one's own as its config merges them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ...errors import UserError
from ...io.text import printable
from ..label_map import MergedClasses, merge_classes


def merged_classes(
    label_map: Mapping[str, str], palette: Sequence[tuple[str, tuple[int, int, int]]]
) -> MergedClasses:
    """The classes that a config's ``label_map`` leaves, of names and colours.

    Raises:
        UserError: It is no such map, or leaves one class or none.
    """
    names, colours = [name for name, _ in palette], [colour for _, colour in palette]
    try:
        merged = merge_classes(label_map, names, colours)
    except UserError as error:
        raise UserError(error.code, "--label-map", error.message) from error
    if label_map and len(merged.classes) < 2:
        message = f"leaves {printable(merged.classes[0])} alone, and nothing to tell it from"
        raise UserError("classes", "--label-map", message)
    return merged


def merged_pixels(pixels: Sequence[int], merged: MergedClasses) -> list[int]:
    """Pixels of each merged class, of those of each label."""
    total: Counter[int] = Counter()
    for label, count in enumerate(pixels):
        total[merged.labels.get(label, label)] += count
    return [total[label] for label in range(len(merged.classes))]
