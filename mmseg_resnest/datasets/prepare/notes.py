# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a person should know about labels that could be prepared."""

from __future__ import annotations

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .custom_options import CustomOptions
from .labels import IMAGE_FORMATS
from .layouts import is_image
from .places import list_folder
from .samples import IGNORED, Sample

_MUCH = 0.1  # of the pixels
_LOW, _HIGH = 128, 200  # label numbers, and those that may mean ignored pixels
_OBJECTS, _COUNTS = 8, 3  # in a mask, and different numbers of them


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


def notes_on_ignored(
    options: CustomOptions, counted: Mapping[str, Any], zero: bool = False
) -> list[str]:
    """Notes where shapes leave a good part of the pixels out, or masks hold a good part of 255.

    ``zero`` says that label 0 is ignored, too.
    """
    labelled = sum(map(sum, counted["pixels"].values()))
    share = counted["ignored"] / max(1, counted["ignored"] + labelled)
    if options.multilabel or options.background is not None:
        return []
    if options.form == "index":
        return _notes_on_255(share, counted, zero)
    if options.form not in ("labelme", "coco") or share < _MUCH:
        return []
    return [
        f"{share:.0%} of the pixels are in no shape and ignored: the model will give each of them"
        " some class; --background NAME makes them a class of their own"
    ]


def _notes_on_255(share: float, counted: Mapping[str, Any], zero: bool) -> list[str]:
    which = "0 in the masks, which has no name in the list of classes, or 255" if zero else ""
    notes = [f"{share:.0%} of the pixels are {which or '255 in the masks'} and ignored"]
    notes = notes if share > _MUCH else []
    held = Counter(counted["held"])
    ones, ignored = held["1"] + held["0 1"], held["255"] + held["0 255"]
    binary = not any(map(sum, (pixels[2:] for pixels in counted["pixels"].values())))
    if binary and ones and ignored and not held["1 255"] + held["0 1 255"]:
        notes.append(
            f"{ignored:,} masks hold 255, which is ignored, and never 1; {ones:,} hold 1 and never"
            " 255: if both mean the object, save it as 1 in all of them"
        )
    return notes


def notes_on_numbers(values: Collection[int], name: Callable[[int], str]) -> list[str]:
    """A note on label numbers from 0 on and one or two near 255, which may mean ignored pixels.

    ``name`` tells what the class of a number is called.
    """
    low, high = [v for v in values if v < _LOW], sorted(v for v in values if v >= _HIGH)
    if len(low) + len(high) < len(values) or len(low) < 2 or not 1 <= len(high) <= 2:
        return []
    if max(low) >= 2 * len(low) + 10:
        return []
    which = " and ".join(map(str, high))
    return [
        f"the masks hold numbers up to {max(low)}, and {which}, as a class: where that means"
        f" ignored pixels, give --ignore {' '.join(map(name, high))}"
    ]


def notes_on_objects(values: Sequence[Collection[int]]) -> list[str]:
    """A note on label numbers that count the objects of each mask, given those of each mask."""
    used = [set(some) - {0, IGNORED} for some in values]
    largest = {max(some) for some in used if some}
    dense = all(some == set(range(1, len(some) + 1)) for some in used)
    if not dense or len(largest) < _COUNTS or max(largest) < _OBJECTS:
        return []
    return [
        f"each mask holds the numbers from 1 on without a gap, up to {max(largest)}: do they count"
        " objects? They are taken for classes, each of which has one number in all masks"
    ]


def _is_turned(image: Path | bytes) -> bool:
    """Whether EXIF data turn an image and leave its size as it is."""
    if isinstance(image, bytes) or image.suffix.lower() == ".npy":
        return False
    try:
        with Image.open(image, formats=IMAGE_FORMATS) as file:
            orientation = file.getexif().get(0x0112, 1)
            return orientation in (2, 3, 4) or (
                orientation in (5, 6, 7, 8) and file.width == file.height
            )
    except Exception:  # who reads it says so
        return False


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


def notes_on_samples(samples: Sequence[Sample], options: CustomOptions) -> list[str]:
    """Notes on PNG files of 16 bits, and on images of masks that EXIF data turn."""
    notes = []
    if deep := [f"{one.name}{one.suffix}" for one in samples if _is_deep(one.image)]:
        notes.append(
            f"{len(deep):,} images have 16 bits a channel (e.g. {deep[0]}), of which the upper 8"
            " are read: smaller values become black; saved as TIFF they are read as they are"
        )
    of_masks = samples if options.form in ("colour", "index", "masks") else ()
    if turned := [f"{one.name}{one.suffix}" for one in of_masks if _is_turned(one.image)]:
        notes.append(
            f"{len(turned):,} images are turned or mirrored by their EXIF data (e.g. {turned[0]}),"
            " and training reads them so: look whether their masks are, too (browse-data)"
        )
    return notes


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
