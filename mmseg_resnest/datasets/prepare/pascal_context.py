# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Pascal Context, 59 classes, from any of the forms in which its labels are published.

- ``trainval_merged.json`` of the Detail API: run lengths of each area with one of the numbers of
  the 459 labels; areas are painted in the file's order, as that API's ``getMask`` does.
- ``LabelMap`` files of the authors (``trainval.tar.gz``, one ``.mat`` an image): the numbers of the
  459 labels, which ``labels.txt`` names.
- ``59_context_labels`` of the authors: PNGs numbered as in ``59_labels.txt``.
- ``SegmentationClassContext``: PNGs numbered as this project's, MMSegmentation's classes are.

All become 0 = background and 1..59 in alphabetical order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmseg.datasets import PascalContextDataset59

from ...errors import UserError
from ...io.json_files import parse_json
from .archives import Archive
from .dataset import DataSet, Plan, complete
from .labels import indices, map_values, png
from .mat_files import read_label_matrix
from .places import Files, Place, twice
from .shapes import decode_rle
from .voc12aug import names_in

_INSIDE = "VOCdevkit/VOC2010"
CLASSES: tuple[str, ...] = tuple(PascalContextDataset59.METAINFO["classes"])
# The numbers of CLASSES among the 459 labels, used where no list of names comes with the labels.
NUMBERS_OF_459 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
_LONGEST_EDGE = 10_000  # pixels; the images have at most 500
Maker = tuple[Any, ...]  # a function that makes a label map, and its arguments
_OTHER_NAMES = {"diningtable": "table"}  # VOC's name for it


def class_table(names: Mapping[int, str], where: object) -> dict[int, int]:
    """Our label for every number of a list of names; 0 for names of no class.

    Raises:
        UserError: A class is missing from the list.
    """
    ours = {name: label for label, name in enumerate(CLASSES, start=1)}
    table = {0: 0}
    for number, name in names.items():
        plain = name.strip().lower()
        table[number] = ours.get(_OTHER_NAMES.get(plain, plain), 0)
    missing = sorted(set(ours.values()) - set(table.values()))
    if missing:
        raise UserError("classes", where, f"does not name the class {CLASSES[missing[0] - 1]!r}")
    return table


def _names(place: Place) -> dict[int, str]:
    """``12: name`` a line."""
    lines = place.read().decode("utf-8", "replace").splitlines()
    found = [re.match(r"\s*(\d+)\s*[:\s]\s*(.+?)\s*$", line) for line in lines]
    return {int(match[1]): match[2] for match in found if match}


def _table_459(names: Mapping[int, str] | None, where: object) -> dict[int, int]:
    if names:
        return class_table(names, where)
    table = dict.fromkeys(range(460), 0)
    return table | {number: label for label, number in enumerate(NUMBERS_OF_459, start=1)}


def mat_map(place: Place, table: Mapping[int, int]) -> bytes:
    """The label map of a ``LabelMap`` file."""
    labels = read_label_matrix(place.read(), place, "LabelMap")
    return png(map_values(labels, table, place))


def png_map(place: Place, table: Mapping[int, int] | None) -> bytes:
    """The label map of a PNG; without a table it has our numbers."""
    return png(map_values(indices(place.read(), place), table or range(60), place))


def detail_map(
    areas: list[tuple[int, Any]], height: int, width: int, name: str, table: Mapping[int, int]
) -> bytes:
    """The label map of an image of the Detail API: its areas, later ones over earlier ones."""
    if not (_is_edge(height) and _is_edge(width)):
        message = f"{height!r:.40} x {width!r:.40} is not the size of an image of it"
        raise UserError("annotation", name, message)
    labels = np.zeros((height, width), dtype=np.uint8)
    for category, runs in areas:
        try:
            mask = decode_rle(runs["counts"], height, width)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            message = f"an area of it cannot be read ({error!s:.300})"
            raise UserError("annotation", name, message) from error
        labels[mask] = table.get(category, 0)
    return png(labels)


def _is_edge(value: object) -> bool:
    return type(value) is int and 0 < value <= _LONGEST_EDGE


def _detail(place: Place) -> tuple[dict[str, Maker], dict[str, list[str]]]:
    """What makes each label map of a Detail file, and its splits."""
    data = parse_json(place.read(), str(place))
    try:
        categories = {int(c["category_id"]): str(c["name"]) for c in data.get("categories", ())}
        table = _table_459(categories, place)
        areas = defaultdict(list)
        for area in data["annos_segmentation"]:
            areas[area["image_id"]].append((int(area["category_id"]), area["segmentation"]))
        makers: dict[str, Maker] = {}
        splits = defaultdict(list)
        for image in data["images"]:
            stem = image["file_name"].rsplit(".", 1)[0]
            makers[stem] = (
                detail_map, areas[image["image_id"]], image["height"], image["width"],
                f"{place}: {stem}", table,
            )  # fmt: skip
            splits[image["phase"]].append(stem)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error!s:.300}"
        message = f"is not the annotation file of the Detail API ({what}); get it again"
        raise UserError("annotation", place, message) from error
    return makers, splits


def _plan(files: Files, allow_incomplete: bool) -> Plan:
    plan = Plan()
    images = files.by_name(r"JPEGImages/([^/]+)\.jpg")
    splits = {
        split: names_in(
            files.one(rf"ImageSets/SegmentationContext/{split}\.txt")
            # VOC 2010's own split is the one of Pascal Context.
            or files.one(rf"VOC2010/ImageSets/Main/{split}\.txt")
        )
        for split in ("train", "val")
    }
    makers: dict[str, Maker] = {}
    json_file = files.one(r"trainval_merged\.json")
    ready = files.by_name(r"SegmentationClassContext/([^/]+)\.png")
    mats = files.by_name(r"(\d{4}_\d{6})\.mat")
    of_59 = files.by_name(r"59_context_labels/([^/]+)\.png")
    if json_file is not None:
        makers, detail_splits = _detail(json_file)
        splits = {split: sorted(detail_splits.get(split, [])) for split in splits}
    elif mats:
        names = files.one(r"labels\.txt")
        table = _table_459(_names(names) if names else None, names)
        makers = {n: (mat_map, p, table) for n, p in mats.items()}
    elif of_59:
        names = files.one(r"59_labels\.txt")
        if names is None:
            message = f"is not there and names the numbers of {next(iter(of_59.values()))}"
            raise UserError("not-found", "59_labels.txt", f"{message}; name it with --source too")
        table_59 = class_table(_names(names), names)
        makers = {n: (png_map, p, table_59) for n, p in of_59.items()}
    elif ready:
        makers = {n: (png_map, p, None) for n, p in ready.items()}
    for one, other in ((json_file, mats), (json_file, of_59)):
        if one is not None and other:
            raise twice(one, next(iter(other.values())))
    for split, names_of_split in splits.items():
        where = PASCAL_CONTEXT.where
        names_there = complete(
            names_of_split, images, makers, files.sources, where, allow_incomplete
        )
        for name in names_there:
            plan.take(f"{_INSIDE}/JPEGImages/{name}.jpg", images[name])
            plan.make(f"{_INSIDE}/SegmentationClassContext/{name}.png", *makers[name])
        plan.counts[split] = len(names_there)
        if names_there:
            plan.write(f"{_INSIDE}/ImageSets/SegmentationContext/{split}.txt", names_there)
    return plan


PASCAL_CONTEXT = DataSet(
    name="pascal_context",
    folder="pascal_context",
    archives=(
        Archive(
            "VOCtrainval_03-May-2010.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
            md5="da459979d0c395079b5c75ee67908abb",
        ),
        Archive(
            "trainval_merged.json",
            "https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
            md5="3c2d0c0656b7be9eb61928ffe885d8ce",
        ),
        Archive("trainval.tar.gz"),
        Archive("59_context_labels.tar.gz"),
    ),
    where="it is VOCtrainval_03-May-2010.tar of host.robots.ox.ac.uk/pascal/VOC/voc2010 and"
    " trainval_merged.json of the Detail API (or the label files of"
    " cs.stanford.edu/~roozbeh/pascal-context), both named with --source",
    expected={"train": 4998, "val": 5105},
    plan=_plan,
    wanted=r"\.(?:mat|png|txt)$",
    cached=(
        ("image", f"{_INSIDE}/JPEGImages/*.jpg"),
        ("label", f"{_INSIDE}/SegmentationClassContext/*.png"),
    ),
)
