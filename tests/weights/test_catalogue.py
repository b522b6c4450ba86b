# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The catalogue of published weights agrees with itself, the configs and the published tables."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from user_errors import raises_user_error

from mmseg_resnest.models.resnest import ARCHITECTURES
from mmseg_resnest.weights import EXPORT_LAYOUTS, catalogue, find

ROOT = Path(__file__).parents[2]
ENTRIES = catalogue()

# A second copy of the published tables, typed from the papers' and zoos' pages: pixAcc, mIoU.
PUBLISHED = {
    "fcn_resnest50_ade": (80.18, 42.94),
    "deeplab_resnest50_ade": (81.17, 45.12),
    "deeplab_resnest101_ade": (82.07, 46.91),
    "deeplab_resnest200_ade": (82.45, 48.36),
    "deeplab_resnest269_ade": (82.62, 47.60),
    "fcn_resnest50_pcontext": (79.19, 51.98),
    "deeplab_resnest50_pcontext": (80.41, 53.19),
    "deeplab_resnest101_pcontext": (81.91, 56.49),
    "deeplab_resnest200_pcontext": (82.50, 58.37),
    "deeplab_resnest269_pcontext": (83.06, 58.92),
}
# Single scale, multi-scale and flip: mIoU.
OPENMMLAB = {
    "openmmlab/fcn_resnest101_ade20k": (45.62, 46.16),
    "openmmlab/pspnet_resnest101_ade20k": (45.44, 46.28),
    "openmmlab/deeplabv3_resnest101_ade20k": (45.71, 46.59),
    "openmmlab/deeplabv3plus_resnest101_ade20k": (46.47, 47.27),
    "openmmlab/fcn_resnest101_cityscapes": (77.56, 78.98),
    "openmmlab/pspnet_resnest101_cityscapes": (78.57, 79.19),
    "openmmlab/deeplabv3_resnest101_cityscapes": (79.67, 80.51),
    "openmmlab/deeplabv3plus_resnest101_cityscapes": (79.62, 80.27),
}
# The first digits of the hash, top-1.
BACKBONES = {
    "resnest50": ("528c19ca", 81.03),
    "resnest101": ("22405ba7", 82.83),
    "resnest200": ("75117900", 83.84),
    "resnest269": ("0cc87c48", 84.54),
    "resnest50_fast_1s1x64d": ("d8fbf808", 80.33),
    "resnest50_fast_2s1x64d": ("44938639", 80.53),
    "resnest50_fast_4s1x64d": ("f74f3fc3", 80.76),
    "resnest50_fast_1s2x40d": ("32830b84", 80.59),
    "resnest50_fast_2s2x40d": ("9d126481", 80.61),
    "resnest50_fast_4s2x40d": ("41d14ed0", 81.14),
    "resnest50_fast_1s4x24d": ("d4a4f76f", 80.99),
}


def test_what_is_in_it():
    published = {name for name, entry in ENTRIES.items() if entry.layout == "published"}
    assert published == {*PUBLISHED, *BACKBONES}
    assert {name for name in ENTRIES if name.startswith("openmmlab/")} == set(OPENMMLAB)
    archs = ("14", "26", "50", "101", "200", "269")
    gluon = {f"gluoncv/resnest{n}" for n in archs}
    gluon |= {f"gluoncv/deeplab_resnest{n}_ade" for n in archs[2:]}
    assert {name for name in ENTRIES if name.startswith("gluoncv/")} == gluon
    timm = ["14d", "26d", "50d", "101e", "200e", "269e", "50d_4s2x40d", "50d_1s4x24d"]
    assert {name for name in ENTRIES if name.startswith("timm/")} == {
        f"timm/resnest{n}" for n in timm
    }
    assert len(ENTRIES) == len(published) + len(OPENMMLAB) + len(gluon) + len(timm)


def test_published_numbers():
    for name, (pix_acc, miou) in PUBLISHED.items():
        assert ENTRIES[name].metrics == {"multi-scale + flip": {"pixAcc": pix_acc, "mIoU": miou}}
    for name, (single, multi) in OPENMMLAB.items():
        assert ENTRIES[name].metrics == {
            "single scale": {"mIoU": single},
            "multi-scale + flip": {"mIoU": multi},
        }
    for name, (digits, top1) in BACKBONES.items():
        assert ENTRIES[name].digest == digits
        assert ENTRIES[name].metrics["single crop"]["top1"] == top1


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_agrees_with_itself(name):
    entry = ENTRIES[name]
    assert entry.name == name == find(name).name
    assert entry.arch in ARCHITECTURES
    assert entry.layout in (*EXPORT_LAYOUTS, "gluoncv")
    length = {"sha256": 64, "sha1": 40}[entry.algorithm]
    assert re.fullmatch(rf"[0-9a-f]{{8}}|[0-9a-f]{{{length}}}", entry.digest)
    stem, _, suffix = entry.file.rpartition(".")
    assert stem.endswith(f"-{entry.digest[:8]}")
    assert suffix == ("params" if entry.layout == "gluoncv" else "pth")
    assert entry.urls and len(set(entry.urls)) == len(entry.urls)
    for url in entry.urls:
        parts = urlsplit(url)
        assert parts.scheme == "https" and parts.hostname and not parts.query
        assert url == url.strip() and re.fullmatch(r"[\x21-\x7e]+", url)
        assert Path(parts.path).name in (entry.file, f"{stem}.zip")
    for numbers in entry.metrics.values():
        assert numbers and all(isinstance(v, int | float) for v in numbers.values())
    if entry.task == "segmentation":
        assert set(entry.metrics) <= {"single scale", "multi-scale + flip"}
        assert all("mIoU" in numbers for numbers in entry.metrics.values())
        config = ROOT / entry.config
        assert config.is_file()
        assert f"{entry.arch.removeprefix('resnest')}" in config.stem
        assert entry.dataset.lower().replace(" ", "_") in config.stem
        head = re.split(r"[/_]", entry.name.removeprefix("openmmlab/").removeprefix("gluoncv/"))[0]
        assert {"deeplab": "deeplabv3"}.get(head, head) in re.split(r"[_-]", config.stem)
    else:
        assert entry.task == "classification" and entry.config is None
        assert set(entry.metrics) == {"single crop"} and entry.dataset == "ImageNet"
        numbers = entry.metrics["single crop"]
        assert 70 < numbers["top1"] < 90 and set(numbers) <= {"top1", "crop"}


def test_one_file_is_one_thing():
    """Entries that share a file (timm mirrors the published ones) agree on its hash."""
    hashes = {}
    for entry in ENTRIES.values():
        assert hashes.setdefault(entry.file, (entry.algorithm, entry.digest)) == (
            entry.algorithm,
            entry.digest,
        )


def test_a_wrong_name_says_the_right_one():
    with raises_user_error("not-found", "deeplab_resnest101_ad") as caught:
        find("deeplab_resnest101_ad")
    assert "'deeplab_resnest101_ade'" in caught.value.message
    with raises_user_error("not-found", "zzz"):
        find("zzz")


def test_the_caller_cannot_change_it():
    catalogue().clear()
    assert len(catalogue()) == len(ENTRIES)
