# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Files of detection in COCO's form, checked before MMDetection reads them.

MMDetection numbers classes by the order of a file's categories, leaves out what it does not know,
and meets an image that is not there when training asks for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..io.json_files import read_json
from ..io.text import printable

__all__ = ["check_coco"]

_NUMBER: tuple[type, ...] = (int, float)
#: What MMDetection and pycocotools read of each entry.
_KEYS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": (str,), "height": _NUMBER, "width": _NUMBER},
    "categories": {"id": (int,), "name": (str,)},
    "annotations": {
        "id": (int,),
        "image_id": (int, str),
        "category_id": (int,),
        "bbox": (list,),
        "area": _NUMBER,
    },
}
_WORDS = {
    (int, str): "a whole number or text",
    _NUMBER: "a number",
    (int,): "a whole number",
    (str,): "text",
    (list,): "a list",
}


def check_coco(
    file: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    classes: Sequence[str] | None,
    masks: bool = False,
    labelled: bool = True,
    scored: bool = False,
) -> None:
    """Check a JSON file of boxes, and that its images are there.

    Args:
        file: The JSON file.
        folder: Of the images.
        classes: The names of the classes in the order of their labels; None: of any name.
        masks: Whether outlines are read, too.
        labelled: Whether boxes are needed, to train on or to score.
        scored: Whether pycocotools reads it, which asks each box whether it is a crowd's.

    Raises:
        UserError: The file is not JSON; lacks a list or a key of an entry; has an id twice, an
            unknown id, a box that is not four numbers, or an outline that is missing or of another
            size; lacks the category of a class, or has the categories in another order than the
            classes; an image does not exist; or there is no image, or no box of a class.
    """
    data = read_json(file, str(file))
    if not labelled and isinstance(data, dict):
        data.setdefault("annotations", [])
    for part, keys in _KEYS.items():
        _check_part(file, data, part, keys)
    names = {one["id"]: one["name"] for one in data["categories"]}
    sizes = {one["id"]: (one["height"], one["width"]) for one in data["images"]}
    used = _check_classes(file, list(names.values()), classes)
    boxes = 0
    for number, one in enumerate(data["annotations"]):
        fault = _fault(one, sizes, names, used if masks else set())
        if scored and not fault and "iscrowd" not in one:
            fault = "has no `iscrowd`, 0 or 1, without which it cannot be scored"
        if fault:
            raise UserError("annotation", file, f"{_name('annotations', number, one)} {fault}")
        counts = names[one["category_id"]] in used and not one.get("iscrowd")
        boxes += counts and not _is_dropped(one)
    missing = list(_missing(folder, [one["file_name"] for one in data["images"]]))
    if missing:
        more = f" ({len(missing):,} of {len(sizes):,} images are not there)"
        message = f"this image of {file} does not exist{more if len(missing) > 1 else ''}"
        raise UserError("not-found", missing[0], message)
    if not sizes or (labelled and not boxes):
        raise UserError("empty", file, "has no box of a class" if sizes else "has no image")


def _check_part(
    file: str | os.PathLike[str], data: Any, part: str, keys: Mapping[str, tuple[type, ...]]
) -> None:
    """Check that a list is there, that its entries have these keys, and that ids differ."""
    entries = data.get(part) if isinstance(data, Mapping) else None
    if not isinstance(entries, list):
        message = (
            f"has no list `{part}`; COCO's files hold `images`, `annotations` and `categories`"
        )
        raise UserError("annotation", file, message)
    seen: set[Any] = set()
    for number, one in enumerate(entries):
        for key, kinds in keys.items():
            value = one.get(key) if isinstance(one, Mapping) else None
            if not isinstance(value, kinds) or isinstance(value, bool):
                message = f"{_name(part, number, one)} has no `{key}`, {_WORDS[kinds]}"
                raise UserError("annotation", file, message)
        for key in ("id", "name") if part == "categories" else ("id",):
            if (key, one[key]) in seen:
                message = f"has the {key} {printable(str(one[key])):.80} twice in `{part}`"
                raise UserError("annotation", file, f"{message}; they must differ")
            seen.add((key, one[key]))


def _name(part: str, number: int, one: Any) -> str:
    """How an entry is named: by its place, and by its id if it has one."""
    number_of = one.get("id") if isinstance(one, Mapping) else None
    said = "" if number_of is None else f" (id {printable(str(number_of)):.40})"
    return f"`{part}` {number}{said}"


def _check_classes(
    file: str | os.PathLike[str], names: list[str], classes: Sequence[str] | None
) -> set[str]:
    """The names of categories that are used; UserError if they are not the classes, in order."""
    if classes is None:
        return set(names)
    wanted = set(classes)
    there = [name for name in names if name in wanted]
    known = ", ".join(printable(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
    if lost := [name for name in classes if name not in there]:
        message = f"lacks the categories of {len(lost)} of {len(classes)} classes, such as "
        message += f"{printable(lost[0])}; it has {known or 'none'}; write its categories into "
        message += "metainfo.classes of the data set (and their number into num_classes of the "
        raise UserError("classes", file, f"{message}heads), or add them to the file")
    if there != list(classes):
        message = (
            f"has its categories in another order than metainfo.classes ({known}), and labels "
            "go by the file's; write both in the same order"
        )
        raise UserError("classes", file, message)
    return wanted


def _fault(
    one: Mapping[str, Any],
    sizes: Mapping[Any, tuple[float, float]],
    names: Mapping[int, str],
    outlined: set[str],
) -> str:
    """What is wrong with an annotation, which needs an outline if its category is ``outlined``."""
    if one["image_id"] not in sizes:
        return f"is of image {one['image_id']!s:.40}, which is not in `images`"
    if one["category_id"] not in names:
        return f"is of category {one['category_id']}, which is not in `categories`"
    box = one["bbox"]
    if len(box) != 4 or not all(_is_number(value) for value in box):
        return "has a `bbox` that is not [left, top, width, height]"
    if names[one["category_id"]] not in outlined or _is_dropped(one):
        return ""
    outline = one.get("segmentation")
    if isinstance(outline, Mapping):
        if outline.get("size") != list(sizes[one["image_id"]]):
            return f"has run lengths of size {outline.get('size')!s:.40}, and its image another"
        return "" if isinstance(outline.get("counts"), list | str) else "has no run lengths"
    if not outline or not isinstance(outline, list):
        return "has no `segmentation`, which masks are trained on"
    if all(isinstance(part, list) for part in outline):
        return ""
    return "has a polygon that is not a list of numbers"


def _is_dropped(one: Mapping[str, Any]) -> bool:
    """Whether MMDetection leaves an annotation out."""
    return bool(one.get("ignore")) or one["area"] <= 0 or min(one["bbox"][2:]) < 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _missing(folder: str | os.PathLike[str], names: Sequence[str]) -> Iterator[Path]:
    """Images that are not there; each folder is listed once."""
    listed: dict[str, set[str]] = {}
    for name in names:
        place, base = os.path.split(os.path.join(folder, name))
        if place not in listed:
            try:
                listed[place] = set(os.listdir(place or "."))
            except OSError:
                listed[place] = set()
        if base not in listed[place]:
            yield Path(place, base)
