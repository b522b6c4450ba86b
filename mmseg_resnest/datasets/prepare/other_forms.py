# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a folder holds in place of labels that can be read: labels of other forms, archives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from ...io.image_files import IMAGE_SUFFIXES
from .layouts import is_image, split_and_role
from .places import Place
from .samples import UNREAD_SUFFIXES

# Whether a file is of a kind: the file, its name in lower case, and whether an image has its stem.
Fits = Callable[[Place, str, bool], bool]
_READ = 4096  # bytes that tell what a file is
_YOLO = re.compile(r"\d+(?:\s+-?[\d.]+(?:e-?\d+)?){4,}", re.I)
_OTHER_FILES = (
    (
        "medical volumes",
        "save their slices as PNG or .npy",
        (".nii", ".nii.gz", ".dcm", ".nrrd", ".mha", ".mhd"),
    ),
    ("shapes of maps", "burn them into masks (gdal_rasterize)", (".shp", ".geojson", ".gpkg")),
    ("tables of Hugging Face", "save the images and masks as files", (".parquet", ".arrow")),
    ("arrays", "save images as .npy and masks as PNG", (".npz", ".mat", ".h5", ".hdf5", ".pkl")),
    (
        "an archive",
        "unpack it and name the folder",
        (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"),
    ),
    ("images of a kind that is not read", "convert them to PNG", UNREAD_SUFFIXES),
)


def other_forms(places: Sequence[Place], lists: Sequence[str]) -> str:
    """What the files are and what helps, for a message; empty where nothing is known.

    ``lists`` are the names of files that list classes, in lower case.
    """
    names = {place.file.with_suffix("").name for place in places if is_image(place)}
    twice = Counter(one.file.with_suffix("") for one in places if is_image(one, IMAGE_SUFFIXES))

    def named_twice(place: Place, _name: str, _of_image: bool) -> bool:
        return twice[place.file.with_suffix("")] > 1

    kinds: list[tuple[str, str, Fits]] = [
        ("CVAT's XML", "export from CVAT as COCO or as a segmentation mask", _cvat),
        ("XML of boxes", "label areas, and export them as COCO or masks", _xml),
        ("YOLO's text files", "export from their tool as COCO or as masks", _yolo),
        ("JSON of another form", "export from its tool as COCO or as masks", _json),
        ("a table of run lengths", "draw them into masks", _runs),
        *((what, remedy, _ending(ends)) for what, remedy, ends in _OTHER_FILES),
        ("two images of one name", "move the masks into a folder `masks`", named_twice),
        ("masks without images", "put the images beside them, in a folder `images`", _mask),
    ]
    for what, remedy, fits in kinds:
        for place in places:
            name = place.file.name.lower()
            if name not in lists and fits(place, name, place.file.stem in names):
                return f"but {what} ({place.name}); {remedy}"
    return ""


def _start(place: Place) -> str:
    try:
        with place.file.open("rb") as file:
            return file.read(_READ).decode("utf-8", "replace")
    except OSError:
        return ""


def _cvat(place: Place, name: str, _: bool) -> bool:
    return name.endswith(".xml") and "<annotations" in _start(place)


def _xml(place: Place, name: str, _: bool) -> bool:
    return name.endswith(".xml") and "<annotation>" in _start(place)


def _yolo(place: Place, name: str, of_image: bool) -> bool:
    if not name.endswith(".txt") or not (of_image or split_and_role(place.name)[1] == "labels"):
        return False
    lines = _start(place).splitlines()
    return bool(lines) and _YOLO.match(lines[0]) is not None


def _json(place: Place, name: str, _: bool) -> bool:
    return name.endswith((".json", ".jsonl", ".ndjson"))


def _runs(place: Place, name: str, _: bool) -> bool:
    return name.endswith(".csv") and "encodedpixels" in _start(place).partition("\n")[0].lower()


def _ending(ends: tuple[str, ...]) -> Fits:
    return lambda _place, name, _of_image: name.endswith(ends)


def _mask(place: Place, name: str, _: bool) -> bool:
    return is_image(place) and split_and_role(place.name)[1] == "labels"
