# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""VOC 2012 with the labels of the Semantic Boundaries Dataset (SBD)."""

from __future__ import annotations

import numpy as np

from .archives import Archive
from .dataset import DataSet, Plan, complete
from .labels import bit_palette, colours_to_labels, map_values, open_image, png
from .mat_files import read_label_matrix
from .places import Files, Place

_INSIDE = "VOCdevkit/VOC2012"
_VALUES = (*range(21), 255)
_COLOURS = {
    (int(red), int(green), int(blue)): value
    for value, (red, green, blue) in enumerate(bit_palette())
    if value in _VALUES
}


def _in_index_form(place: Place) -> bool:
    """Whether a label file's numbers are VOC's; a copy may hold colours or another palette."""
    image = open_image(place.read(), place)
    if image.mode == "L":
        return True
    if image.mode != "P":
        return False
    palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    used = np.unique(np.asarray(image))
    used = used[used < len(palette)]
    return bool((palette[used] == bit_palette()[used]).all())


def index_map(place: Place) -> bytes:
    """The label numbers of a VOC label file, be it palette, grey or colour, as a grey PNG."""
    image = open_image(place.read(), place)
    if _in_index_form(place):
        labels = np.asarray(image).astype(np.int64)
    else:
        rgb = np.asarray(image.convert("RGB"))
        labels = colours_to_labels(rgb, _COLOURS, place).astype(np.int64)
    return png(map_values(labels, _VALUES, place))


def sbd_map(place: Place) -> bytes:
    """The label map of an SBD file: field ``GTcls.Segmentation``, 0..20."""
    labels = read_label_matrix(place.read(), place, "GTcls", "Segmentation")
    return png(map_values(labels, range(21), place))


def names_in(place: Place | None) -> list[str]:
    """The names of a list file; none when there is no file."""
    return place.read().decode("utf-8-sig", "replace").split() if place is not None else []


def _plan(files: Files, allow_incomplete: bool) -> Plan:
    plan = Plan()
    images = files.by_name(r"JPEGImages/([^/]+)\.jpg")
    labels = files.by_name(r"SegmentationClass/([^/]+)\.png")
    ready = files.by_name(r"SegmentationClassAug/([^/]+)\.png")
    sbd = files.by_name(r"cls/([^/]+)\.mat")
    lists = {
        split: names_in(files.one(rf"ImageSets/Segmentation/{split}\.txt"))
        for split in ("train", "val", "trainaug")
    }
    sbd_lists = [files.one(rf"dataset/{split}\.txt") for split in ("train", "val")]
    extra = [name for place in sbd_lists for name in names_in(place)]
    held_out = set(lists["val"])
    if sbd and not extra:  # unpacked without its lists
        extra = sorted(sbd)
    # SBD's training and validation images and VOC's training images, less VOC's validation images.
    # Ready labels are those that a list names, or all of them: copies hold VOC's validation too.
    wanted = sorted({*extra, *lists["train"], *(lists["trainaug"] or ready)} - held_out)
    if wanted and not held_out and not lists["trainaug"]:
        plan.notes.append(
            "no ImageSets/Segmentation/val.txt: trainaug may hold images of VOC's validation set;"
            " scores on that set would be too good"
        )

    rest = files.sources, VOC12AUG.where, allow_incomplete
    augmented = complete(wanted, images, {**sbd, **labels, **ready}, *rest)
    taken = set(augmented)
    for name in augmented:
        target = f"{_INSIDE}/SegmentationClassAug/{name}.png"
        # VOC's own labels where there are both: they are finer and mark the borders.
        if name in lists["train"] and name in labels:
            plan.make(target, index_map, labels[name])
        elif name in sbd:
            plan.make(target, sbd_map, sbd[name])
        else:
            place = ready.get(name, labels.get(name))
            assert place is not None
            plan.make(target, index_map, place)
    plan.counts["trainaug"] = len(augmented)
    for split in ("train", "val"):
        names = complete(lists[split], images, labels, *rest)
        for name in names:
            target = f"{_INSIDE}/SegmentationClass/{name}.png"
            if _in_index_form(labels[name]):
                plan.take(target, labels[name])
            else:
                plan.make(target, index_map, labels[name])
        taken |= set(names)
        plan.counts[split] = len(names)
        plan.write(f"{_INSIDE}/ImageSets/Segmentation/{split}.txt", names)
    plan.write(f"{_INSIDE}/ImageSets/Segmentation/trainaug.txt", augmented)
    for name in sorted(taken):
        plan.take(f"{_INSIDE}/JPEGImages/{name}.jpg", images[name])
    if not taken:
        plan.items.clear()
    return plan


VOC12AUG = DataSet(
    name="voc12aug",
    folder="voc2012",
    archives=(
        Archive(
            "VOCtrainval_11-May-2012.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            sha1="4e443f8a2eca6b1dac8a6c57641b67dd40621a49",
        ),
        Archive(
            "benchmark.tgz",
            "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
            "semantic_contours/benchmark.tgz",
            sha1="7129e0a480c2d6afb02b517bb18ac54283bfaa35",
        ),
    ),
    where="it is VOCtrainval_11-May-2012.tar of host.robots.ox.ac.uk/pascal/VOC/voc2012 and"
    " benchmark.tgz of SBD, both named with --source",
    expected={"trainaug": 10582, "train": 1464, "val": 1449},
    plan=_plan,
    wanted=r"(?:^|/)(?:cls/[^/]+\.mat|dataset/(?:train|val)\.txt)$",
    cached=(
        ("image", f"{_INSIDE}/JPEGImages/*.jpg"),
        ("label", f"{_INSIDE}/SegmentationClassAug/*.png"),
        ("label", f"{_INSIDE}/SegmentationClass/*.png"),
    ),
)
