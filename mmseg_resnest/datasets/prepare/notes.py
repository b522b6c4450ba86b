# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a person should know about labels that could be prepared."""

from __future__ import annotations

import os
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .custom_options import CustomOptions
from .layouts import is_image
from .places import list_folder
from .samples import Sample

_MUCH = 0.1  # of the pixels


def notes_on_pixels(classes: Sequence[tuple[Any, ...]], unlabelled: Sequence[str]) -> list[str]:
    """Notes on classes (name, colour, pixels to train and to validate on) and unlabelled images."""
    notes = []
    for name, _, *counts in classes:
        without = [s for s, count in zip(("train", "val"), counts, strict=True) if not count]
        if without:
            notes.append(f"class {name!r} has no pixel in {' and '.join(without)}")
    if unlabelled:
        number, first = len(unlabelled), min(unlabelled)
        notes.append(f"{number:,} images have no labelled pixel, e.g. {first}: they teach nothing")
    return notes


def notes_on_uncovered(options: CustomOptions, counted: Mapping[str, Any]) -> list[str]:
    """A note where shapes leave a good part of the pixels out."""
    shapes = options.form in ("labelme", "coco") and options.background is None
    labelled = sum(map(sum, counted["pixels"].values()))
    share = counted["ignored"] / max(1, counted["ignored"] + labelled)
    if not shapes or options.multilabel or share < _MUCH:
        return []
    return [
        f"{share:.0%} of the pixels are in no shape and ignored: the model will give each of them"
        " some class; --background NAME makes them a class of their own"
    ]


def notes_on_names(names: Sequence[str]) -> list[str]:
    """Notes on classes whose names differ in upper and lower case, spaces, ``-`` or ``_`` alone."""
    alike = defaultdict(list)
    for name in names:
        key = "".join(c for c in name.casefold() if not c.isspace() and c not in "-_")
        alike[key].append(name)
    notes = []
    for some in alike.values():
        if len(some) > 1:
            merge = " ".join(shlex.quote(f"{name}={some[0]}") for name in some[1:])
            shown = " and ".join(map(repr, some))
            notes.append(f"classes {shown} have almost one name; --label-map {merge} merges them")
    return notes


def note_on_images(samples: Sequence[Sample], folders: Sequence[Path]) -> list[str]:
    """A note on the images of folders that no JSON file of labels names."""
    used = {os.path.realpath(sample.image) for sample in samples if isinstance(sample.image, Path)}
    stems = {Path(sample.name).name for sample in samples}  # those inside JSON files, and masks
    left = [
        place for folder in dict.fromkeys(folders) for place in list_folder(folder)
        if is_image(place) and os.path.realpath(place.file) not in used
        and place.file.stem not in stems
    ]  # fmt: skip
    if not left:
        return []
    return [f"{len(left):,} images have no labels and are left out, e.g. {left[0]}"]
