# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Tiny data sets in their official layout."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_archives import Members, encoded, jpeg, labels_of, png_of


@pytest.fixture(scope="session")
def ade_members() -> Members:
    top = "ADEChallengeData2016"
    members = {f"{top}/objectInfo150.txt": b"Idx\n", f"{top}/images/": b""}
    for split, names in (("training", "abcde"), ("validation", "xyz")):
        for name in names:
            members[f"{top}/images/{split}/ADE_{name}.jpg"] = jpeg(ord(name))
            members[f"{top}/annotations/{split}/ADE_{name}.png"] = png_of(labels_of(ord(name), 151))
    return members


@pytest.fixture(scope="session")
def cityscapes_members() -> tuple[Members, Members]:
    images, labels = {}, {}
    for split, number in (("train", 3), ("val", 2), ("test", 1)):
        for index in range(number):
            stem = f"{split}/aachen/aachen_{index:06d}_000019"
            images[f"leftImg8bit/{stem}_leftImg8bit.png"] = encoded(
                np.full((6, 8, 3), 20 * index + 3, dtype=np.uint8), "PNG"
            )
            ids = labels_of(index, 34) if split != "test" else np.zeros((6, 8), np.uint8)
            labels[f"gtFine/{stem}_gtFine_labelIds.png"] = png_of(ids)
            labels[f"gtFine/{stem}_gtFine_instanceIds.png"] = png_of(ids)
            labels[f"gtFine/{stem}_gtFine_polygons.json"] = b"{}"
    return images, labels
