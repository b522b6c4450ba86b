# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The built-in demo scenes: drawn, not downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from ..scenes import write_scenes
from .dataset import Report

SCENES_CACHED = tuple(
    (kind, f"{folder}/{split}/*.png")
    for kind, folder in (("image", "images"), ("label", "annotations"))
    for split in ("training", "validation")
)


def prepare_scenes(folder: str | os.PathLike[str]) -> Report:
    """Draws the scenes of ``make demo`` into a folder, unless they are there."""
    folder = Path(folder)
    unchanged = (folder / "scenes.json").is_file()
    write_scenes(folder)
    counts = {
        split: len(list((folder / "images" / split).iterdir()))
        for split in ("training", "validation")
    }
    total = 2 * sum(counts.values())
    return Report(folder, counts, {"kept" if unchanged else "made": total}, [], unchanged)
