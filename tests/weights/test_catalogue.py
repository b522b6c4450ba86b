# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The catalogue of published weights agrees with itself, the configs and the published tables."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from user_errors import raises_user_error

from mmseg_resnest.models.resnest import ARCHITECTURES
from mmseg_resnest.weights import EXPORT_LAYOUTS, catalogue, find

ROOT = Path(__file__).parents[2]
ENTRIES = catalogue()


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_agrees_with_itself(name):
    entry = ENTRIES[name]
    assert entry.name == name == find(name).name
    other = re.fullmatch(r"mscan_[tsbl]|mit_b[024]", entry.arch)
    assert other or entry.arch in ARCHITECTURES
    assert entry.layout in (*EXPORT_LAYOUTS, "gluoncv")
    length = {"sha256": 64, "sha1": 40, None: 8}[entry.algorithm]
    assert re.fullmatch(rf"[0-9a-f]{{8}}|[0-9a-f]{{{length}}}", entry.digest)
    stem, _, suffix = entry.file.rpartition(".")
    assert stem.endswith(f"-{entry.digest[:8]}")
    assert suffix == ("params" if entry.layout == "gluoncv" else "pth")
    assert entry.urls and len(set(entry.urls)) == len(entry.urls)
    for url in entry.urls:
        parts = urlsplit(url)
        assert parts.scheme == "https" and parts.hostname and not parts.query
        assert url == url.strip() and re.fullmatch(r"[\x21-\x7e]+", url)
        assert unquote(Path(parts.path).name) in (entry.file, f"{stem}.zip")
    for numbers in entry.metrics.values():
        assert numbers and all(isinstance(v, int | float) for v in numbers.values())
    if entry.task == "segmentation":
        assert set(entry.metrics) <= {"single scale", "multi-scale + flip"}
        assert all("mIoU" in numbers for numbers in entry.metrics.values())
        config = ROOT / entry.config
        assert config.is_file()
        assert entry.arch.removeprefix("resnest").replace("_", "") in config.stem
        assert entry.dataset.lower().replace(" ", "_") in config.stem
        head = re.split(r"[/_]", entry.name.removeprefix("openmmlab/").removeprefix("gluoncv/"))[0]
        assert {"deeplab": "deeplabv3"}.get(head, head) in re.split(r"[_-]", config.stem)
    elif entry.task == "detection":
        assert set(entry.metrics) == {"single scale"} and entry.dataset == "COCO"
        numbers = entry.metrics["single scale"]
        assert set(numbers) == {"box AP", *(["mask AP"] if "mask_rcnn" in name else [])}
        assert all(38 < value < 51 for value in numbers.values())
        assert (ROOT / entry.config).is_file()
        assert entry.config == f"configs/detection/{name}.py"
        assert name.endswith(f"rcnn_{entry.arch}_coco")
    else:
        assert entry.task == "classification" and entry.config is None
        assert entry.dataset == "ImageNet"
        if other or entry.layout == "detectron2":  # nobody states numbers of them
            assert entry.metrics == {}
            return
        assert set(entry.metrics) == {"single crop"}
        numbers = entry.metrics["single crop"]
        assert 70 < numbers["top1"] < 90 and set(numbers) <= {"top1", "crop"}


def test_weights_that_may_not_be_sold_say_so():
    """SegFormer's are made from NVIDIA's."""
    for entry in ENTRIES.values():
        own = "segformer" in entry.name or entry.arch.startswith("mit_")
        assert entry.licence == "LicenseRef-NVIDIA-non-commercial" if own else entry.licence


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
