# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a person should know about labels that could be prepared."""

from __future__ import annotations

import os
import shlex
from collections import Counter, defaultdict
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


def notes_on_ignored(options: CustomOptions, counted: Mapping[str, Any]) -> list[str]:
    """Notes where shapes leave a good part of the pixels out, or masks hold a good part of 255."""
    labelled = sum(map(sum, counted["pixels"].values()))
    share = counted["ignored"] / max(1, counted["ignored"] + labelled)
    if options.multilabel or options.background is not None:
        return []
    if options.form == "index":
        return _notes_on_255(share, counted)
    if options.form not in ("labelme", "coco") or share < _MUCH:
        return []
    return [
        f"{share:.0%} of the pixels are in no shape and ignored: the model will give each of them"
        " some class; --background NAME makes them a class of their own"
    ]


def _notes_on_255(share: float, counted: Mapping[str, Any]) -> list[str]:
    notes = [f"{share:.0%} of the pixels are 255 in the masks and ignored"] if share > _MUCH else []
    held = Counter(counted["held"])
    ones, ignored = held["1"] + held["0 1"], held["255"] + held["0 255"]
    binary = not any(map(sum, (pixels[2:] for pixels in counted["pixels"].values())))
    if binary and ones and ignored and not held["1 255"] + held["0 1 255"]:
        notes.append(
            f"{ignored:,} masks hold 255, which is ignored, and never 1; {ones:,} hold 1 and never"
            " 255: if both mean the object, save it as 1 in all of them"
        )
    return notes


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


def note_on_depth(samples: Sequence[Sample]) -> list[str]:
    """A note on PNG files of 16 bits."""
    deep = [f"{one.name}{one.suffix}" for one in samples if _is_deep(one.image)]
    if not deep:
        return []
    return [
        f"{len(deep):,} images have 16 bits a channel (e.g. {deep[0]}), of which the upper 8 are"
        " read: smaller values become black; saved as TIFF they are read as they are"
    ]


def _is_deep(image: Path | bytes) -> bool:
    if isinstance(image, bytes) or image.suffix.lower() != ".png":
        return False
    try:
        with image.open("rb") as file:
            return file.read(25)[24:] == b"\x10"
    except OSError:  # who reads it says so
        return False


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
