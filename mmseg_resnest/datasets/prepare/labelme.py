# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""LabelMe's files: one JSON file an image, with polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from ...io.contained import check_inside, contained
from ...io.json_files import read_json
from ...io.text import printable
from ..class_names import check_class_name
from .labels import Labels, open_image
from .planes import Table, blank, paint
from .samples import Sample, edge, find_image, image_size, json_files, unread
from .shapes import Mask, fill_circle, fill_polygon

MAX_BYTES = 1 << 29  # of a JSON file, which may hold its image

# X-AnyLabeling has rectangles of four corners, and turned ones.
_SHAPES = ("polygon", "rectangle", "rotation", "circle", "mask")
_LINE_SHAPES = ("line", "linestrip", "point", "points")
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}


def read_labelme(source: Path, images: Path | None, notes: list[str]) -> list[Sample]:
    """The samples of a folder of LabelMe's files, or of one of them.

    Other JSON files in the folder that no image is named as, such as a list of classes, are left
    out, and ``notes`` takes how many.

    An image is looked for where ``imagePath`` says, as long as that is inside of the source, and
    beside the JSON file under its name; then in ``imageData``. With a folder of images it is looked
    for only there, also by the last part of ``imagePath``. An image that a symbolic link leads to
    must lie in that folder, too.

    Raises:
        UserError: A file is not one of LabelMe, or its image is not there or outside.
    """
    samples, others = [], []
    top = source.parent if source.is_file() else source
    for file in json_files(source):
        data = read_json(file, str(file), MAX_BYTES)
        if not _is_labelme(data) and file != source and not _has_image(file, top, images):
            others.append(file)
            continue
        _check(file, data)
        name = file.relative_to(top).with_suffix("").as_posix()
        image = _image(file, data, top, images)
        names = {_check_shape(file, number, shape) for number, shape in enumerate(data["shapes"])}
        suffix = _content_suffix(file, image) if isinstance(image, bytes) else image.suffix
        render = partial(_render, file, image)
        samples.append(Sample(name, image, render, frozenset(names), suffix))
    if others:
        notes.append(f"{len(others):,} JSON files are not LabelMe's and left out, e.g. {others[0]}")
    return samples


def _is_labelme(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("shapes"), list)


def _has_image(file: Path, top: Path, images: Path | None) -> bool:
    """Whether an image is named as a JSON file."""
    beside = file.with_suffix("")
    return find_image([beside if images is None else images / beside.relative_to(top)]) is not None


def _read(file: Path) -> dict[str, Any]:
    data: dict[str, Any] = read_json(file, str(file), MAX_BYTES)
    _check(file, data)
    return data


def _check(file: Path, data: Any) -> None:
    if not _is_labelme(data):
        raise UserError("annotation", file, "is not a LabelMe file (it has no list `shapes`)")


def _image(file: Path, data: Mapping[str, Any], top: Path, images: Path | None) -> Path | bytes:
    """The image of a JSON file: its file, or its content."""
    given = data.get("imagePath")
    relative = file.relative_to(top).with_suffix("")
    subject, hint = f"{file}: imagePath", "name the folder of the images with --images"
    inside = refusal = None
    if given:
        try:
            inside = contained(given, subject, relative.parent.as_posix(), hint)
        except UserError as error:
            refusal = error
    if images is None:
        candidates = [top / inside] if inside else []
        candidates.append(file.with_suffix(""))
    else:
        candidates = [images / relative]
        if inside:
            candidates.append(images / inside)
        last = given.replace("\\", "/").rsplit("/", 1)[-1] if isinstance(given, str) else ""
        if last not in ("", ".", ".."):
            candidates.append(images / contained(last, subject, hint=hint))
    found = find_image(candidates)
    if found is not None:
        there = [image for one in candidates if (image := find_image([one])) is not None]
        if len({image.stem for image in there}) > 1:
            names = " or ".join(sorted({image.name for image in there}))
            message = f"may label {names}, by its own name and by its imagePath; correct the one"
            message += " that is wrong"
            raise UserError("annotation", file, message)
        check_inside(found, images or top, f"{file}: its image", hint)
        return found
    if data.get("imageData"):
        try:
            return base64.b64decode(data["imageData"])
        except (ValueError, TypeError) as error:
            message = f"imageData is not base64 ({error}); label it again"
            raise UserError("annotation", file, message) from error
    if other := unread(candidates):
        message = f"its image {other.name} is of a kind that is not read; convert it to PNG"
        raise UserError("image", file, message)
    name = printable(str(given or relative))
    message = f"its image {name:.300} is not there; see --images"
    raise refusal or UserError("not-found", file, message)


def _content_suffix(file: Path, image: bytes) -> str:
    opened = open_image(image, f"{file}: imageData")
    if opened.format not in _SUFFIXES:
        message = "imageData is neither JPEG nor PNG; save the image beside the file"
        raise UserError("annotation", file, message)
    return _SUFFIXES[opened.format]


def _check_shape(file: Path, number: int, shape: Any) -> str:
    """The label of a shape, which can be drawn as far as its kind tells."""
    label = shape.get("label") if isinstance(shape, dict) else None
    blank = label is None or (isinstance(label, str) and not label.strip())
    if blank or not isinstance(shape.get("points"), list):
        message = f"shape {number} has no label or no points; fix or remove it"
        raise UserError("annotation", file, message)
    label = check_class_name(label, f"{file}: shape {number}")
    kind = shape.get("shape_type") or "polygon"
    if not isinstance(kind, str) or kind not in _SHAPES:
        why = "which has no area" if kind in _LINE_SHAPES else "which is not known here"
        message = f"shape {number} ({label!r}) is a {kind!s:.80}, {why}; make it a polygon"
        raise UserError("annotation", file, message)
    return label


def _bitmap(shape: Mapping[str, Any], height: int, width: int) -> Mask:
    """LabelMe's ``mask``: a small picture whose upper left corner is the first point."""
    x, y = (round(value) for value in shape["points"][0])
    mask = np.zeros((height, width), dtype=np.bool_)
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)) as picture:
        # Before it is decoded: a few bytes may claim to be a huge picture.
        if x < 0 or y < 0 or y + picture.height > height or x + picture.width > width:
            raise ValueError("its mask leaves the image")
        small = np.asarray(picture) != 0
    mask[y : y + small.shape[0], x : x + small.shape[1]] = small
    return mask


def _mask(shape: Mapping[str, Any], height: int, width: int) -> Mask:
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind == "mask":
        return _bitmap(shape, height, width)
    if kind == "circle":
        return fill_circle(points[0], points[1], height, width)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if kind in ("rectangle", "rotation") and len(points) != 4:
        raise ValueError(f"a {kind} has four corners, and this one has {len(points)} points")
    if not all(len(point) == 2 for point in points):
        raise ValueError("a point is not a pair of x and y")
    return fill_polygon(points, height, width)


def _render(file: Path, image: Path | bytes, table: Table, uncovered: int) -> Labels:
    data = _read(file)
    given = edge(data.get("imageHeight")), edge(data.get("imageWidth"))
    height, width = image_size(image, file if isinstance(image, bytes) else image, given)
    if None not in given and given != (height, width):
        said = f"{given[1]!s:.80}x{given[0]!s:.80}"
        message = f"says that its image is {said}, but it is {width}x{height}; label it again"
        raise UserError("size-mismatch", file, message)
    labels = blank(height, width, table, uncovered)
    for number, shape in enumerate(data["shapes"]):
        label = _check_shape(file, number, shape)
        try:
            mask = _mask(shape, height, width)
        except Exception as error:
            message = f"shape {number} ({label!r}) cannot be drawn ({error})"
            raise UserError("annotation", file, message) from error
        if label not in table:
            raise UserError("dataset", file, "has changed while it was read; run again")
        paint(labels, mask, label, table)
    return labels
