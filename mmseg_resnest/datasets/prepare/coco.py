# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""COCO's files: images, categories, and annotations as polygons or run lengths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
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
from .samples import Sample, find_image, image_size, json_files
from .shapes import decode_rle, fill_polygon

MAX_BYTES = 1 << 32  # of a JSON file


def read_coco(source: Path, images: Path | None) -> list[Sample]:
    """The samples of a JSON file, or of those of a folder.

    Without ``images``, they are looked for beside the JSON file and in ``images/`` there. An image
    that a symbolic link leads to must lie in that folder, too.

    Raises:
        UserError: A file is not one of COCO, or one of its images is not there or outside.
    """
    samples = []
    for file in json_files(source):
        data = read_json(file, str(file), MAX_BYTES)
        areas = defaultdict(list)
        try:
            categories = {
                entry["id"]: check_class_name(entry["name"], f"{file}: category {entry['id']}")
                for entry in data["categories"]
            }
            for entry in data["annotations"]:
                areas[entry["image_id"]].append(
                    (categories[entry["category_id"]], entry["segmentation"], entry.get("id"))
                )
            listed = [
                (areas[entry["id"]], entry["file_name"], (entry.get("height"), entry.get("width")))
                for entry in data["images"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            message = (
                "is not a COCO file: `images`, `annotations` with `segmentation`, `categories`"
                f" (at {error!s:.300})"
            )
            raise UserError("annotation", file, message) from error
        folders = [images] if images else [file.parent, file.parent / "images"]
        for shapes, file_name, size in listed:
            relative = contained(file_name, f"{file}: the file name", hint="make it relative")
            image = find_image(
                candidate for folder in folders
                for candidate in (folder / relative, folder / relative.name)
            )  # fmt: skip
            if image is None:
                message = f"its image {printable(file_name):.300} is not there; see --images"
                raise UserError("not-found", file, message)
            hint = "name the folder of the images with --images"
            check_inside(image, images or file.parent, f"{file}: its image", hint)
            name = relative.with_suffix("").as_posix()
            render = partial(_render, str(file), image, shapes, size)
            names = frozenset(name for name, _, _ in shapes)
            samples.append(Sample(name, image, render, names, image.suffix))
    return samples


def _render(
    file: str,
    image: Path,
    areas: list[tuple[str, Any, Any]],
    given: tuple[Any, Any],
    table: Mapping[str, int],
    uncovered: int,
) -> Labels:
    height, width = image_size(image, image)
    if None not in given and given != (height, width):
        said = f"{given[1]!s:.80}x{given[0]!s:.80}"
        message = f"says that {image.name} is {said}, but it is {width}x{height}"
        raise UserError("size-mismatch", file, message)
    labels = np.full((height, width), uncovered, dtype=np.uint8)
    for name, segmentation, number in areas:
        try:
            if isinstance(segmentation, dict):
                if list(segmentation["size"]) != [height, width]:
                    raise ValueError(
                        f"its size is {segmentation['size']!s:.80}, not {[height, width]}"
                    )
                mask = decode_rle(segmentation["counts"], height, width)
            elif not segmentation:
                raise ValueError("it has no outline, only a box")
            else:
                mask = np.zeros((height, width), dtype=np.bool_)
                for polygon in segmentation:
                    if len(polygon) < 6 or len(polygon) % 2:
                        raise ValueError(f"a polygon has {len(polygon)} numbers")
                    mask |= fill_polygon(polygon, height, width)
        except Exception as error:
            message = f"annotation {number!s:.80} of {image.name} cannot be drawn ({error!s:.300})"
            raise UserError("annotation", file, message) from error
        labels[mask] = table[name]
    return labels
