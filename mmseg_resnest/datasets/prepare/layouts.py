# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What names of files and folders say of labels: their part, their role; and what was found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import UserError
from .places import Place
from .samples import PICTURE_SUFFIXES
from .tables import Colour

FORM_NAMES = {
    "labelme": "LabelMe's JSON files",
    "coco": "COCO's JSON files",
    "colour": "masks of colours",
    "index": "masks of label numbers",
    "masks": "one mask a class",
}

SPLITS = {"train": r"train(?:ing)?", "val": r"val(?:id(?:ation)?)?|dev", "test": r"test(?:ing)?"}
_LABELS = r"ann(?:ot(?:ation)?)?s?|labels?|masks?|gts?|gtfine|ground[_ -]?truths?|targets?"
_LABELS += r"|seg(?:mentation)?s?|semantics?"
_LABELS += r"|segmentation[_ ]?(?:class(?:aug|raw)?|masks?)|label[_ ]?maps?"
_IMAGES = r"images?|imgs?|jpegimages|photos?|pictures?|rgb|inputs?|leftimg8bit|data"
_INSTANCES = r"segmentationobject|instances?"
_ROLES = {"labels": _LABELS, "images": _IMAGES, "instances": _INSTANCES}
_BEHIND = r"(?:[_ -]?(?:dir|folder|png|jpe?g|tiff?|bmp))?"  # ann_dir (MMSegmentation), masks_png


@dataclass(frozen=True)
class Found:
    """What a folder was taken for: the values of ``CustomOptions`` of those names.

    ``rows`` are classes that no file lists, for a table to be written; ``notes`` say what was
    decided, and why.
    """

    form: str
    sources: tuple[Path, ...]
    images: Path | None = None
    val_sources: tuple[Path, ...] = ()
    val_images: Path | None = None
    val_list: Path | None = None
    test_list: Path | None = None
    classes: Path | None = None
    label_suffix: str = ""
    image_suffix: str = ""
    rows: tuple[Colour, ...] = ()
    notes: tuple[str, ...] = ()


def is_image(place: Place, suffixes: Sequence[str] = PICTURE_SUFFIXES) -> bool:
    """Whether a file is named as an image."""
    return Path(place.name).suffix.lower() in suffixes


def split_and_role(name: str) -> tuple[str, str | None]:
    """The part and the role that the folders of a file name: ``val/masks`` is (val, labels)."""
    split, role = named_split_and_role(name)
    return split or "train", role


def named_split_and_role(name: str) -> tuple[str | None, str | None]:
    """As :func:`split_and_role`; the part is None where no folder names it."""
    split, role = None, None
    for folder in PurePosixPath(name).parent.parts:
        for part, pattern in SPLITS.items():
            named = rf"(?:{pattern})[_ -]?(?P<rest>.*)|(?P<front>.+)[_ -](?:{pattern})"
            if match := re.fullmatch(named, folder, re.I):
                rest = match["rest"] or match["front"] or ""
                if not rest or role_of(rest) or re.fullmatch(r"\d{4}", rest):
                    split, folder = part, rest
                    break
        role = role_of(folder) or role
    return split, role


def role_of(folder: str) -> str | None:
    """What the name of a folder says of its files: labels, images or instances; None: nothing."""
    for role, pattern in _ROLES.items():
        if re.fullmatch(rf"(?:{pattern}){_BEHIND}", folder, re.I):
            return role
    return None


def common_folder(places: Iterable[Place]) -> Path:
    """The deepest folder that all files are below."""
    parents = [place.file.parent.parts for place in places]
    shared = 0
    while all(len(parts) > shared and parts[shared] == parents[0][shared] for parts in parents):
        shared += 1
    return Path(*parents[0][:shared])


def choose_splits(
    found: Mapping[str, Any], notes: list[str], folder: Path
) -> tuple[str, str | None]:
    """The parts to train and to validate on.

    Raises:
        UserError: There are labels of several parts, and none to train on.
    """
    names = set(found)
    train = "train" if "train" in names else min(names)
    if "train" not in names and len(names) > 1:
        parts = " and ".join(map(repr, sorted(names)))
        message = (
            f"has labels of the parts {parts} and none to train on; label images in a "
            "folder 'train'"
        )
        raise UserError("dataset", folder, message)
    if train != "train":
        notes.append(f"training: the images of the part {train!r}, as there is no 'train'")
    val = next((name for name in ("val", "test") if name in names - {train}), None)
    if val is not None:
        more = "" if val == "val" else ", as there is no other"
        notes.append(f"validation: the images of the part {val!r}{more}")
    if left := names - {train, val}:
        notes.append(f"left out: the part {', '.join(sorted(left))!r}")
    return train, val
