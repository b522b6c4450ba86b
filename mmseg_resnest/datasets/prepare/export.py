# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Label maps written in the forms that annotation tools keep: the opposite of ``custom``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...io.atomic import atomic_path, atomic_write
from ...io.linking import put_link
from ...io.parallel import in_parallel
from ...io.processes import cpu_count
from ..class_names import classes_json
from .labels import Labels, bit_palette, indices, png
from .masks import images_in
from .places import Place
from .samples import check_image, image_size, speller
from .shapes import compress_rle, encode_rle, outlines
from .tables import IGNORED_NAME, Colour, read_table

_MOST_NAMES = 256  # with that of ignored pixels
EXPORTS = ("labelme", "coco", "coco-rle", "coco-rle-list", "colour")


def export_labels(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    classes: str | os.PathLike[str],
    form: str,
    out: str | os.PathLike[str],
    jobs: int | None = None,
) -> int:
    """Writes a folder of images and index PNGs in another form; returns the number of label maps.

    Polygons follow the pixels' borders, so that reading them back gives every pixel as it was
    (``shapes``). Labels that the class list does not name become ``__ignore__``.

    Args:
        images: Folder of the images.
        labels: Folder of the label maps, of the images' names.
        classes: Class list: the name of label 0, 1, ..., and colours for ``colour``.
        form: One of ``EXPORTS``: LabelMe files beside the images; ``annotations.json`` with
            polygons or with compressed or plain run lengths; colour masks in ``masks/`` and their
            table ``colours.json``.
        out: A new or empty folder; the images go there, or to ``images/`` in it.
        jobs: Processes; None is one a core.

    Raises:
        UserError: A folder or file is missing or is not what it should be.
    """
    images, labels, out = Path(images), Path(labels), Path(out).absolute()
    if form not in EXPORTS:
        raise UserError("argument", f"form {form}", f"must be one of {', '.join(EXPORTS)}")
    for option, folder in (("--images", images), ("--labels", labels)):
        if not folder.is_dir():
            raise UserError("not-found", f"{option} {folder}", "is not a folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("output-exists", f"--out {out}", "is not empty; name a new folder")
    rows = _with_colours(read_table(Path(classes)), str(classes))
    pictures = images_in(images)
    spell, pairs = speller(pictures), []
    for stem, place in images_in(labels).items():
        stem = spell(stem)
        if stem not in pictures:
            raise UserError("dataset", place.file, f"there is no image {stem} in {images}")
        pairs.append((stem, pictures[stem], place))
    if not pairs:
        raise UserError("empty", f"--labels {labels}", "holds no label map")
    with atomic_path(out, f"--out {out}", "name another folder") as made:
        made.mkdir()
        _export(form, rows, made, pairs, cpu_count() if jobs is None else jobs)
    return len(pairs)


def _export(
    form: str,
    rows: Sequence[Colour],
    out: Path,
    pairs: Sequence[tuple[str, Place, Place]],
    processes: int,
) -> None:
    picture_folder = out if form == "labelme" else out / "images"
    for _, picture, _ in pairs:
        check_image(picture.file)
        target = picture_folder / picture.name
        target.parent.mkdir(parents=True, exist_ok=True)
        put_link(picture.file, target)
    work = partial(_export_one, form, rows, out)
    parts = list(in_parallel(work, pairs, processes, f"write {form}"))
    if form.startswith("coco"):
        _write_coco(out / "annotations.json", rows, sorted(parts, key=lambda part: part[0]))
    if form == "colour":
        table = [(row.name, row.rgb) for row in rows if row.rgb is not None]
        atomic_write(out / "colours.json", classes_json(table))


def _with_colours(rows: Sequence[Colour], where: str) -> list[Colour]:
    """The classes, each with a colour, and ``__ignore__`` for every other label."""
    ignored = any(row.name == IGNORED_NAME for row in rows)
    if len(rows) > _MOST_NAMES - (not ignored):
        message = f"names {len(rows)} labels, and 8 bits hold {_MOST_NAMES}, one of them ignored"
        raise UserError("classes", where, message)
    given = {row.rgb for row in rows}
    free = (colour for colour in map(tuple, bit_palette(512)[1:].tolist()) if colour not in given)
    full = [row if row.rgb is not None else Colour(row.name, next(free)) for row in rows]
    if not ignored:
        black = (0, 0, 0)
        full.append(Colour(IGNORED_NAME, black if black not in given else next(free)))
    return full


def _export_one(
    form: str, rows: Sequence[Colour], out: Path, pair: tuple[str, Place, Place]
) -> tuple[str, str, int, int, list[dict[str, Any]]]:
    stem, picture, place = pair
    names = [row.name for row in rows]
    values = indices(place.read(), place)
    known, other = values < len(names), names.index(IGNORED_NAME)
    labels: Labels = np.where(known, values, other).astype(np.uint8)
    height, width = labels.shape
    if image_size(picture.file, picture.file) != (height, width):
        raise UserError("size-mismatch", place, f"differs in size from its image {picture}")
    if form == "labelme":
        plain: dict[str, Any] = dict(group_id=None, shape_type="polygon", flags={})
        shapes = [
            dict(label=names[value], points=corners, **plain) for value, corners in outlines(labels)
        ]
        data = dict(
            version="5.0.0", flags={}, shapes=shapes, imagePath=Path(picture.name).name,
            imageData=None, imageHeight=height, imageWidth=width,
        )  # fmt: skip
        atomic_write(out / f"{stem}.json", json.dumps(data))
    elif form == "colour":
        palette = np.array([row.rgb for row in rows], dtype=np.uint8)
        atomic_write(out / "masks" / f"{stem}.png", png(palette[labels]))
    areas: list[dict[str, Any]] = []
    if form == "coco":
        for value, corners in outlines(labels):
            flat = [coordinate for corner in corners for coordinate in corner]
            areas.append(dict(category_id=value + 1, segmentation=[flat], iscrowd=0))
    elif form.startswith("coco-"):
        for value in np.unique(labels):
            mask = labels == value
            counts = compress_rle(mask) if form == "coco-rle" else encode_rle(mask)
            runs = {"size": [height, width], "counts": counts}
            areas.append(dict(category_id=int(value) + 1, segmentation=runs, iscrowd=1))
    return stem, picture.name, height, width, areas


def _write_coco(
    file: Path,
    rows: Sequence[Colour],
    parts: Sequence[tuple[str, str, int, int, list[dict[str, Any]]]],
) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (_, name, height, width, areas) in enumerate(parts, start=1):
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for area in areas:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **area})
    categories = [{"id": n, "name": row.name} for n, row in enumerate(rows, start=1)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    atomic_write(file, json.dumps(data))
