# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a folder holds in place of labels that can be read: labels of other forms, archives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ...io.image_files import IMAGE_SUFFIXES
from .layouts import is_image, split_and_role
from .places import Place
from .samples import UNREAD_SUFFIXES

_READ = 4096  # bytes that tell what a file is
_YOLO = r"\d+(?:[ \t]+-?[\d.]+(?:e-?\d+)?){4,}"
_RUNS = r"(?s).*encodedpixels|.*[,\"]\d+ \d+ \d+ \d+[ \d]*[,\"\r\n]"
_STUDIO = r"task-\d+-annotation-\d+-by-\d+-"
#: What files are, what helps, how their names end, and how they begin, if that tells.
_KINDS = (
    ("CVAT's XML", "export from CVAT as COCO or as a segmentation mask",
     (".xml",), r"(?s).*<annotations"),
    ("LabelMe's XML, of its web tool or from CVAT",
     "export from CVAT as COCO or as a segmentation mask, or convert it to LabelMe's JSON files",
     (".xml",), r"(?s).*<annotation>.*<polygon>"),
    ("XML of boxes", "label areas, and export them as COCO or masks",
     (".xml",), r"(?s).*<annotation>"),
    ("YOLO's text files", "export from their tool as COCO or as masks", (".txt",), _YOLO),
    ("JSON of another form", "export from its tool as COCO or as masks",
     (".json", ".jsonl", ".ndjson"), ""),
    ("a table of run lengths", "draw them into masks", (".csv",), _RUNS),
    ("VIA's table of regions", "export from VIA as COCO", (".csv",), ".*region_shape_attributes"),
    ("Label Studio's masks, one a region", "draw those of an image into one mask of its name",
     (".png", ".npy"), _STUDIO),
    ("medical volumes", "save their slices as PNG or .npy",
     (".nii", ".nii.gz", ".dcm", ".nrrd", ".mha", ".mhd"), ""),
    ("shapes of maps", "burn them into masks (gdal_rasterize)", (".shp", ".geojson", ".gpkg"), ""),
    ("tables of Hugging Face", "save the images and masks as files", (".parquet", ".arrow"), ""),
    ("arrays", "save images as .npy and masks as PNG",
     (".npz", ".mat", ".h5", ".hdf5", ".pkl"), ""),
    ("an archive", "unpack it and name the folder",
     (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"), ""),
    ("images of a kind that is not read", "convert them to PNG", UNREAD_SUFFIXES, ""),
)  # fmt: skip


def other_forms(places: Sequence[Place], lists: Sequence[str]) -> str:
    """What the files are and what helps, for a message; empty where nothing is known.

    ``lists`` are the names of files that list classes, in lower case.
    """
    places = [place for place in places if place.file.name.lower() not in lists]
    images = [place for place in places if is_image(place)]
    names = {place.file.with_suffix("").name for place in images}
    for what, remedy, ends, start in _KINDS:
        for place in places:
            if not place.file.name.lower().endswith(ends):
                continue
            if start is _YOLO and place.file.stem not in names and not _of_labels(place):
                continue
            if start is _STUDIO and not re.match(start, place.file.name):
                continue
            if not start or start is _STUDIO or re.match(start, _start(place), re.I):
                return f"but {what} ({place.name}); {remedy}"
    twice = Counter(one.file.with_suffix("") for one in images if is_image(one, IMAGE_SUFFIXES))
    for place in places:
        if twice[place.file.with_suffix("")] > 1:
            remedy = "move the masks into a folder `masks`"
            return f"but two images of one name ({place.name}); {remedy}"
    for place in filter(_of_labels, images):
        remedy = "put the images beside them, in a folder `images`"
        return f"but masks without images of their names ({place.name}); {remedy}"
    return ""


def _of_labels(place: Place) -> bool:
    return split_and_role(place.name)[1] == "labels"


def _start(place: Place) -> str:
    try:
        with place.file.open("rb") as file:
            return file.read(_READ).decode("utf-8", "replace")
    except OSError:
        return ""
