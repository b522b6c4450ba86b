# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Lists of images in a folder, which say what they are for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ..layout import listed_names
from .places import Place

_PARTS = ("val", "test", "train")
_ENDS = ("imagesets/segmentation/{}.txt", "splits/{}.txt", "{}.txt")


def found_lists(
    places: Sequence[Place], images: Path, names: Collection[str], notes: list[str]
) -> dict[str, Path]:
    """The lists of images to validate on and to leave out; ``names`` are those with labels.

    As with folders, those to test on are for validation where there is no list of others. Lists of
    images to train on decide nothing; ``notes`` takes where that matters.
    """
    found: dict[str, Path] = {}
    for part in _PARTS:
        for end in (end.format(part) for end in (*_ENDS, *(["valid.txt"] * (part == "val")))):
            files = [one.file for one in places if f"/{one.name.lower()}".endswith(f"/{end}")]
            if files:
                found.setdefault(f"{part}_list", files[0])

    def listed(part: str) -> set[str]:
        file = found.get(f"{part}_list")
        if file is None:
            return set()
        return set(listed_names(file, images, file.parent, (), names.__contains__, strict=False))

    training = listed("train")
    train = found.pop("train_list", None)
    if listed("test"):
        found.setdefault("val_list", found["test_list"])
    if val := found.get("val_list"):
        notes.append(f"validation: the images that {val} lists")
        if training and (more := set(names) - training - listed("val") - listed("test")):
            notes.append(
                f"{len(more):,} images that no list names are trained on, e.g. {min(more)}"
            )
    elif training and len(training) < len(names):
        notes.append(
            f"{train} is not used, as no list names the others: write them into val.txt beside it,"
            " or give --val-list"
        )
    return found
