# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""ADE20K, SceneParsing benchmark: taken as it is."""

from __future__ import annotations

from .archives import Archive
from .dataset import DataSet, Plan, pair
from .places import Files

_INSIDE = "ADEChallengeData2016"


def _plan(files: Files, allow_incomplete: bool) -> Plan:
    plan = Plan()
    for split in ("training", "validation"):
        images = files.by_name(rf"images/{split}/([^/]+)\.jpg")
        labels = files.by_name(rf"annotations/{split}/([^/]+)\.png")
        names = pair(plan, split, images, labels, allow_incomplete)
        for name in names:
            plan.take(f"{_INSIDE}/images/{split}/{name}.jpg", images[name])
            plan.take(f"{_INSIDE}/annotations/{split}/{name}.png", labels[name])
        plan.counts[split] = len(names)
    for name, place in files.by_name(r"release_test/testing/([^/]+)\.jpg").items():
        plan.take(f"{_INSIDE}/images/testing/{name}.jpg", place)
        plan.counts["testing"] = plan.counts.get("testing", 0) + 1
    for text in ("objectInfo150.txt", "sceneCategories.txt"):
        found = files.one(text.replace(".", r"\."))
        if found is not None:
            plan.take(f"{_INSIDE}/{text}", found)
    return plan


ADE20K = DataSet(
    name="ade20k",
    folder="ade20k",
    archives=(
        Archive(
            "ADEChallengeData2016.zip",
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            sha1="219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
        ),
        Archive("release_test.zip"),
    ),
    where="it is ADEChallengeData2016.zip of sceneparsing.csail.mit.edu",
    expected={"training": 20210, "validation": 2000},
    plan=_plan,
    cached=(
        ("image", f"{_INSIDE}/images/training/*.jpg"),
        ("image", f"{_INSIDE}/images/validation/*.jpg"),
        ("label", f"{_INSIDE}/annotations/training/*.png"),
        ("label", f"{_INSIDE}/annotations/validation/*.png"),
    ),
)
