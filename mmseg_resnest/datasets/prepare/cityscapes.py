# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Cityscapes, fine annotations: taken as it is, and the train ids made."""

from __future__ import annotations

import re

from cityscapesscripts.helpers.labels import labels as _table

from .archives import Archive
from .dataset import DataSet, Plan, pair
from .labels import indices, map_values, png
from .places import Files, Place

# As createTrainIdLabelImgs draws them: it draws each polygon with its label's train id where
# createLabelIds drew the id, on the train id of "unlabeled"; so one map is a table of the other.
TRAIN_IDS = {label.id: label.trainId for label in _table if label.id >= 0}


def train_ids(place: Place) -> bytes:
    """``*_gtFine_labelTrainIds.png`` from a ``*_gtFine_labelIds.png``."""
    return png(map_values(indices(place.read(), place), TRAIN_IDS, place))


def _plan(files: Files, allow_incomplete: bool) -> Plan:
    plan = Plan()
    for split in ("train", "val", "test"):
        images = files.by_name(rf"leftImg8bit/{split}/([^/]+)/([^/]+)_leftImg8bit\.png")
        labels = files.by_name(rf"gtFine/{split}/([^/]+)/([^/]+)_gtFine_labelIds\.png")
        if split == "test":  # its label maps are blanks, and not everybody has them
            names, labelled = sorted(images), sorted(set(images) & set(labels))
        else:
            names = labelled = pair(plan, split, images, labels, allow_incomplete)
        for name in names:
            plan.take(f"leftImg8bit/{split}/{name}_leftImg8bit.png", images[name])
        for name in labelled:
            stem = f"gtFine/{split}/{name}_gtFine"
            plan.take(f"{stem}_labelIds.png", labels[name])
            if split != "test":
                plan.make(f"{stem}_labelTrainIds.png", train_ids, labels[name])
        # The official evaluation of instances and the polygons, where they are there.
        for ending in ("instanceIds.png", "polygons.json"):
            pattern = rf"gtFine/{split}/([^/]+)/([^/]+)_gtFine_{re.escape(ending)}"
            for name, place in files.by_name(pattern).items():
                if name in labels and name in images:
                    plan.take(f"gtFine/{split}/{name}_gtFine_{ending}", place)
        plan.counts[split] = len(names)
    return plan


CITYSCAPES = DataSet(
    name="cityscapes",
    folder="cityscapes",
    # As its download page, behind the login, gives them.
    archives=(
        Archive("leftImg8bit_trainvaltest.zip", md5="0a6e97e94b616a514066c9e2adb0c97f"),
        Archive("gtFine_trainvaltest.zip", md5="4237c19de34c8a376e9ba46b495d6f66"),
    ),
    where="log in at cityscapes-dataset.com, get leftImg8bit_trainvaltest.zip and"
    " gtFine_trainvaltest.zip, and name them or their folder with --source",
    expected={"train": 2975, "val": 500, "test": 1525},
    plan=_plan,
    cached=(
        ("image", "leftImg8bit/train/*/*_leftImg8bit.png"),
        ("image", "leftImg8bit/val/*/*_leftImg8bit.png"),
        ("label", "gtFine/train/*/*_gtFine_labelTrainIds.png"),
        ("label", "gtFine/val/*/*_gtFine_labelTrainIds.png"),
    ),
)
