# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Tiny data sets in their official layout."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_archives import Members, Voc, encoded, jpeg, labels_of, png_of, sbd_mat

from mmseg_resnest.datasets.prepare.labels import bit_palette


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


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs made here name their own."""
    monkeypatch.delenv("MMSEG_RESNEST_DATA", raising=False)


@pytest.fixture(scope="session")
def voc() -> Voc:
    """Images 0..5 in VOC (0..2 train, 3..5 val), 6..8 only in SBD; 1 and 4 in both."""
    palette = [int(v) for v in bit_palette().reshape(-1)]
    top, sbd, lists = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset", "ImageSets/Segmentation"
    names = [f"2007_{number:06d}" for number in range(9)]
    main = {f"{top}/JPEGImages/{name}.jpg": jpeg(n) for n, name in enumerate(names)}
    truth = {}
    for n, name in enumerate(names[:6]):
        truth[name] = labels_of(n, 21)
        truth[name][0] = 255
        for folder in ("SegmentationClass", "SegmentationObject"):
            main[f"{top}/{folder}/{name}.png"] = png_of(truth[name], palette)
    main[f"{top}/{lists}/train.txt"] = "\r\n".join(names[:3]).encode()
    main[f"{top}/{lists}/val.txt"] = "\n".join(names[3:6]).encode()
    main[f"{top}/ImageSets/Main/train.txt"] = b"of another task"
    extra = {}
    for n in (1, 4, 6, 7, 8):
        labels = labels_of(50 + n, 21)
        truth.setdefault(names[n], labels)
        for folder in ("cls", "inst"):
            extra[f"{sbd}/{folder}/{names[n]}.mat"] = sbd_mat(labels)
        extra[f"{sbd}/img/{names[n]}.jpg"] = jpeg(n)
    extra[f"{sbd}/train.txt"] = "\n".join(names[n] for n in (1, 4, 6)).encode()
    extra[f"{sbd}/val.txt"] = "\n".join(names[n] for n in (7, 8)).encode()
    extra["benchmark_RELEASE/benchmark_code_RELEASE/train.txt"] = b"not a list"
    return main, extra, truth
