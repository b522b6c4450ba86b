# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""COCO's files: images, categories, and annotations as polygons or run lengths."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...io.contained import check_inside, contained
from ...io.json_files import read_json
from ...io.text import printable
from ..class_names import check_class_name
from .labels import Labels
from .planes import Table, blank, paint
from .samples import Sample, edge, find_image, image_size, is_turned, json_files, unread
from .shapes import check_polygon, decode_rle, fill_polygon, run_lengths

MAX_BYTES = 1 << 32  # of a JSON file
_SHOWN = 3  # of each kind of fault


class Faults:
    """What cannot be used of COCO files, by file and kind."""

    def __init__(self) -> None:
        self._found: dict[Path, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))

    def add(self, file: Path, kind: str, what: str) -> None:
        """Note one thing; ``kind`` is a plural with which the number of them reads well."""
        self._found[file][kind].append(what)

    def texts(self) -> dict[Path, str]:
        """A sentence for each file: how many of each kind, and the first ones."""
        texts = {}
        for file, kinds in self._found.items():
            parts = []
            for kind, some in kinds.items():
                more = ", ..." if len(some) > _SHOWN else ""
                parts.append(f"{len(some):,} {kind} ({', '.join(some[:_SHOWN])}{more})")
            texts[file] = "; ".join(parts)
        return texts

    def error(self) -> UserError | None:
        """The error for all of them; None if there are none."""
        texts = self.texts()
        if not texts:
            return None
        (first, text), *others = texts.items()
        text = "; ".join([text, *(f"{file}: {more}" for file, more in others)])
        kinds = {kind for found in self._found.values() for kind in found}
        code = "not-found" if kinds == {_GONE} else "annotation"
        hint = "correct them, or leave them out with --allow-incomplete"
        return UserError(code, first, f"cannot be used as it is: {text}; {hint}")


_GONE = "images that are not there, see --images"
_UNREAD = "images of kinds that are not read, convert them to PNG and name that in the file"


def read_coco(source: Path, images: Path | None, faults: Faults) -> list[Sample]:
    """The samples of a JSON file, or of those of a folder.

    Without ``images``, they are looked for beside the JSON file and in ``images/`` there. An image
    that a symbolic link leads to must lie in that folder, too.

    What ``faults`` takes note of is left out: annotations without an outline, or with one that
    cannot be drawn, whose boxes are then ignored; and images that are not there.

    Raises:
        UserError: A file is not one of COCO, or one of its images is outside.
    """
    samples = []
    for file in json_files(source):
        data = read_json(file, str(file), MAX_BYTES)
        try:
            categories = {
                entry["id"]: check_class_name(entry["name"], f"{file}: category {entry['id']}")
                for entry in data["categories"]
            }
            names = {entry["id"]: entry["file_name"] for entry in data["images"]}
            sizes = {
                entry["id"]: (edge(entry.get("height")), edge(entry.get("width")))
                for entry in data["images"]
            }
            by_image = defaultdict(list)
            for entry in data["annotations"]:
                by_image[entry["image_id"]].append((entry["category_id"], entry))
            for part in ("images", "categories"):
                for number, times in Counter(entry["id"] for entry in data[part]).items():
                    if times > 1:
                        said = f"has the id {number!s:.80} {times} times in `{part}`"
                        raise UserError("annotation", file, f"{said}; ids must differ")
        except (KeyError, TypeError, AttributeError) as error:
            message = (
                "is not a COCO file: `images`, `annotations` with `segmentation`, `categories`"
                f" (at {error!s:.300})"
            )
            raise UserError("annotation", file, message) from error
        for image_id, entries in by_image.items():
            for _, entry in entries if image_id not in names else ():
                what = f"id {entry.get('id')!s:.40}: image {image_id!r:.40}"
                faults.add(file, "annotations of images that are not listed", what)
        for image_id, file_name in names.items():
            image, name, there = _find(file, images, file_name)
            if image is None:
                faults.add(file, _UNREAD if there else _GONE, f"{printable(file_name):.200}")
                continue
            shapes, boxes = [], []
            for category, entry in by_image.get(image_id, ()):
                what = f"id {entry.get('id')!s:.40} of {printable(image.name):.100}"
                outline = _outline(entry)
                if category not in categories:
                    what += f": category {category!r:.40}"
                    faults.add(file, "annotations of categories that are not listed", what)
                elif fault := _fault(outline, image, sizes[image_id]):
                    faults.add(file, f"annotations {fault[0]}", what + fault[1])
                else:
                    shapes.append((categories[category], outline, entry.get("id")))
                    continue
                boxes.append(entry.get("bbox"))
            render = partial(_render, str(file), image, shapes, boxes, sizes[image_id])
            occurring = frozenset(label for label, _, _ in shapes)
            samples.append(Sample(name, image, render, occurring, image.suffix))
    return samples


def _find(file: Path, images: Path | None, file_name: Any) -> tuple[Path | None, str, bool]:
    """The file of an image, its name in the data set, and whether there is one that is not read."""
    folders = [images] if images else [file.parent, file.parent / "images"]
    relative = contained(file_name, f"{file}: the file name", hint="make it relative")
    candidates = [
        candidate for folder in folders
        for candidate in (folder / relative, folder / relative.name)
    ]  # fmt: skip
    image = find_image(candidates)
    if image is not None:
        hint = "name the folder of the images with --images"
        check_inside(image, images or file.parent, f"{file}: its image", hint)
    there = image is None and unread(candidates) is not None
    return image, relative.with_suffix("").as_posix(), there


def _outline(entry: dict[str, Any]) -> Any:
    """The outline of an annotation; some tools write one polygon without the list around it."""
    outline = entry.get("segmentation")
    if isinstance(outline, list) and outline and not isinstance(outline[0], list):
        return [outline]
    return outline


def _fault(outline: Any, image: Path, given: tuple[Any, Any]) -> tuple[str, str] | None:
    """Why an outline cannot be drawn: the kind, and what to add to the number of one."""
    if not outline:
        return "with a box alone", ""
    known = all(type(edge) is int for edge in given)
    if isinstance(outline, dict):
        height, width = given if known else image_size(image, image)
    try:
        if isinstance(outline, dict):
            if list(outline["size"]) != [height, width]:
                text = f": {outline['size']!s:.80}, not {[height, width]}"
                return "whose run lengths have another size than their image", text
            run_lengths(outline["counts"], height, width)
            return None
        for polygon in outline:
            if len(polygon) < 6:
                return "with a polygon of fewer than three points", ""
            if len(polygon) % 2:
                return "with a polygon of an odd number of coordinates", ""
            check_polygon(polygon, given if known else None)
    except Exception as error:
        return "that cannot be drawn", f": {printable(str(error)):.200}"
    return None


def _render(
    file: str,
    image: Path,
    areas: list[tuple[str, Any, Any]],
    boxes: list[Any],
    given: tuple[Any, Any],
    table: Table,
    uncovered: int,
) -> Labels:
    height, width = image_size(image, image, given)
    if None not in given and given != (height, width):
        said = f"{given[1]!s:.80}x{given[0]!s:.80}"
        message = f"says that {image.name} is {said}, but it is {width}x{height}"
        turned = given == (width, height) and is_turned(image, (height, width))
        message += "; remove its EXIF data, which turn it" if turned else "; correct the file"
        raise UserError("size-mismatch", file, message)
    labels = blank(height, width, table, uncovered)
    for box in boxes:
        paint(labels, _inside(box), None, table)
    for name, segmentation, number in areas:
        try:
            if isinstance(segmentation, dict):
                mask = decode_rle(segmentation["counts"], height, width)
            else:
                mask = np.zeros((height, width), dtype=np.bool_)
                for polygon in segmentation:
                    mask |= fill_polygon(polygon, height, width)
        except Exception as error:
            message = f"annotation {number!s:.80} of {image.name} cannot be drawn ({error!s:.300})"
            raise UserError("annotation", file, message) from error
        paint(labels, mask, name, table)
    return labels


def _inside(box: Any) -> tuple[slice, slice]:
    """The pixels that a box [x, y, width, height] touches; none if it is not a box."""
    try:
        x, y, width, height = (float(np.clip(value, -1e6, 1e6)) for value in box)
        rows, columns = (y, y + height), (x, x + width)
        row, column = (
            slice(max(0, math.floor(low)), max(0, math.ceil(high))) for low, high in (rows, columns)
        )
    except (TypeError, ValueError):
        return slice(0), slice(0)
    return row, column
