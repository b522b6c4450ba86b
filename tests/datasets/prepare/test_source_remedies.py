# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the errors of ``prepare-data`` about archives and outputs tell people to do is done."""

from __future__ import annotations

import shutil
import zipfile
from collections import namedtuple
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from advice import advises, helps
from custom_sets import custom, write_masks
from tiny_archives import (
    Members,
    Voc,
    encoded,
    jpeg,
    labels_of,
    png_of,
    small,
    write_folder,
    write_zip,
)  # fmt: skip

from mmseg_resnest.datasets.prepare import ADE20K, VOC12AUG, CustomReport, DataSet, prepare
from mmseg_resnest.datasets.prepare.build_cache import build_cache
from mmseg_resnest.datasets.prepare.export import export_labels
from mmseg_resnest.datasets.prepare.mat_files import read_label_matrix
from mmseg_resnest.datasets.prepare.outputs import Item, Outputs
from mmseg_resnest.datasets.prepare.places import check_room
from mmseg_resnest.io.bands import BandOptions

CACHED = (("image", "images/**/*.*"), ("label", "annotations/**/*.png"))


# --- official data sets -----------------------------------------------------------------------


@pytest.fixture
def ade(ade_members: Members) -> tuple[DataSet, Members]:
    files = {name: data for name, data in ade_members.items() if data}
    return small(ADE20K, training=5, validation=3), files


def test_sources(tmp_path: Path, ade: tuple[DataSet, Members]) -> None:
    dataset, members = ade
    source = write_folder(tmp_path / "unpacked", members)
    root = tmp_path / "data"
    with advises("datasets/prepare/dataset.py:_check_options", "--source PATH"):
        prepare(dataset, root)
    with advises("datasets/prepare/dataset.py:_check_options", "give one of them"):
        prepare(dataset, root, [source], download=True)
    prepare(dataset, root, [source], link="copy")
    folder = root / "ade20k"
    other = replace(dataset, name="another")
    with advises("datasets/prepare/dataset.py:prepare", "--root"):
        prepare(other, root, [source])
    assert folder.is_dir() and prepare(other, tmp_path / "more", [source]).done


def test_empty_files(tmp_path: Path, ade: tuple[DataSet, Members]) -> None:
    dataset, members = ade
    source = write_folder(tmp_path / "unpacked", members)
    image = source / "ADEChallengeData2016/images/training/ADE_a.jpg"
    image.write_bytes(b"")
    with advises("datasets/prepare/dataset.py:take", "get it again"):
        prepare(dataset, tmp_path / "d4", [source])
    image.write_bytes(members["ADEChallengeData2016/images/training/ADE_a.jpg"])
    prepare(dataset, tmp_path / "d4", [source])


def test_archives(tmp_path: Path, ade: tuple[DataSet, Members]) -> None:
    dataset, members = ade
    file = write_zip(tmp_path / "ADEChallengeData2016.zip", members)
    whole = file.read_bytes()
    official = small(ADE20K, [file], training=5, validation=3)

    def fetch_again() -> None:
        file.write_bytes(whole)

    file.write_bytes(whole[:-40])
    helps("datasets/prepare/archives.py:list_archive", "get it again",
          call=lambda: prepare(dataset, tmp_path / "d1", [file]), remedy=fetch_again,
    )  # fmt: skip
    with zipfile.ZipFile(file, "a") as changed:
        changed.comment = b"another file"
    helps("datasets/prepare/archives.py:check", "get it again",
          call=lambda: prepare(official, tmp_path / "d2", [file]), remedy=fetch_again,
    )  # fmt: skip
    with zipfile.ZipFile(file, "a") as changed:
        changed.comment = b"another file"
    with advises("datasets/prepare/archives.py:check", "unpack it and name the folder"):
        prepare(official, tmp_path / "d3", [file])
    with zipfile.ZipFile(file) as changed:
        changed.extractall(tmp_path / "unpacked")
    prepare(official, tmp_path / "d3", [tmp_path / "unpacked"])
    locked = bytearray(whole)
    locked[locked.index(b"PK\1\2") + 8] |= 1
    file.write_bytes(locked)
    with advises("datasets/prepare/archives.py:_list_zip", "unpack it", "--source"):
        prepare(dataset, tmp_path / "d4", [file])
    prepare(dataset, tmp_path / "d4", [tmp_path / "unpacked"])


def test_files_that_stand_twice(tmp_path: Path, ade: tuple[DataSet, Members]) -> None:
    dataset, members = ade
    for name in ("one", "two"):
        write_folder(tmp_path / "both" / name, members)
    with advises("datasets/prepare/places.py:twice", "name one of them with --source"):
        prepare(dataset, tmp_path / "data", [tmp_path / "both"])
    prepare(dataset, tmp_path / "data", [tmp_path / "both/one"])


def test_masks_and_images_of_voc(tmp_path: Path, voc: Voc) -> None:
    main, extra, _ = voc
    dataset = small(VOC12AUG, trainaug=6, train=3, val=3)
    source = write_folder(tmp_path / "voc", {**main, **extra})
    mask = source / "VOCdevkit/VOC2012/SegmentationClass/2007_000000.png"
    kept = mask.read_bytes()
    mask.write_bytes(encoded(np.full((6, 8, 3), (7, 7, 7), np.uint8), "PNG"))
    helps("datasets/prepare/labels.py:colours_to_labels", "before they were resized",
          call=lambda: prepare(dataset, tmp_path / "data", [source], jobs=1),
          remedy=lambda: mask.write_bytes(kept))  # fmt: skip
    (source / "VOCdevkit/VOC2012/JPEGImages/2007_000007.jpg").unlink()
    (source / "benchmark_RELEASE/dataset/img/2007_000007.jpg").unlink()
    with advises("datasets/prepare/dataset.py:complete", "--allow-incomplete"):
        prepare(dataset, tmp_path / "d2", [source])
    assert prepare(dataset, tmp_path / "d2", [source], allow_incomplete=True).counts


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [1000]
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(free[-1]))
    helps("datasets/prepare/places.py:check_room", "make room",
          call=lambda: check_room(tmp_path, 2000), remedy=lambda: free.append(3000))  # fmt: skip


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    def run() -> None:
        with Outputs(tmp_path / "out") as outputs:
            outputs.run([Item("folder/c.png", "c", make=partial(bytes, 1))], 1, "auto", "test")

    write_folder(tmp_path / "out", {"folder": b""})
    helps("datasets/prepare/outputs.py:run", "fix that and run again",
          call=run, remedy=(tmp_path / "out/folder").unlink)  # fmt: skip


def test_damaged_matrices() -> None:
    from tiny_archives import sbd_mat

    whole = sbd_mat(labels_of(1, 21))
    with advises("datasets/prepare/mat_files.py:read_label_matrix", "get it again"):
        read_label_matrix(whole[:100], "x.mat", "GTcls", "Segmentation")
    read_label_matrix(whole, "x.mat", "GTcls", "Segmentation")


# --- outputs, cache, export ------------------------------------------------------------------


def test_outputs_in_the_way(tmp_path: Path, ade: tuple[DataSet, Members]) -> None:
    dataset, members = ade
    source = write_folder(tmp_path / "unpacked", members)
    taken = tmp_path / "data/ade20k/ADEChallengeData2016/images/training/ADE_a.jpg"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"mine")
    with advises("datasets/prepare/outputs.py:__call__", "move it", "--root"):
        prepare(dataset, tmp_path / "data", [source], jobs=1)
    prepare(dataset, tmp_path / "other", [source])
    taken.rename(tmp_path / "moved.jpg")
    prepare(dataset, tmp_path / "data", [source])
    (tmp_path / "file").write_text("x")
    with advises("datasets/prepare/outputs.py:__enter__", "--root"):
        prepare(dataset, tmp_path / "file", [source])
    state = tmp_path / "data/ade20k/.prepare/record.json"
    state.unlink()
    state.symlink_to(tmp_path / "nowhere")
    with advises("datasets/prepare/outputs.py:_check_state", "remove it"):
        prepare(dataset, tmp_path / "data", [source])
    state.unlink()
    prepare(dataset, tmp_path / "data", [source])


def test_caches(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "d", {"images/a.jpg": jpeg(1)})
    write_folder(data, {"annotations/a.png": png_of(labels_of(1, 3))})
    cached = CACHED
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with advises("datasets/prepare/build_cache.py:build_cache", "name another folder") as told:
        build_cache(data, cached, tmp_path / "full")
    assert told.value.code == "output-exists"
    build_cache(data, cached, tmp_path / "cache")
    other = shutil.copytree(data, tmp_path / "other", dirs_exist_ok=True)
    with advises("datasets/prepare/build_cache.py:build_cache", "another data set") as told:
        build_cache(other, cached, tmp_path / "cache")
    assert told.value.code == "output-exists"
    build_cache(other, cached, tmp_path / "cache2")
    (tmp_path / "file").touch()
    with advises("datasets/prepare/build_cache.py:build_cache", "--cache DIR"):
        build_cache(data, cached, tmp_path / "file/cache")
    picture = jpeg(2, (64, 64))
    write_folder(data, {"images/b.jpg": picture[:-400]})
    helps("datasets/prepare/build_cache.py:_write", "put a whole copy of it there",
          call=lambda: build_cache(data, cached, tmp_path / "cache", jobs=1),
          remedy=lambda: (data / "images/b.jpg").write_bytes(picture))  # fmt: skip
    (tmp_path / "nothing").mkdir()
    with advises(
        "datasets/prepare/build_cache.py:build_cache", "prepare the data set first"
    ) as told:
        build_cache(tmp_path / "nothing", cached, tmp_path / "cache3")
    assert told.value.code == "empty"


def test_exports(tmp_path: Path) -> None:
    custom(tmp_path, **write_masks(tmp_path, ["a_1", "a_2", "a_3"]))
    folder = tmp_path / "data/mine"
    out = tmp_path / "out"
    write_folder(out, {"x": b""})

    def export(to: Path) -> int:
        parts = folder / "images", folder / "annotations", folder / "classes.json"
        return export_labels(*parts, "labelme", to, 1)

    with advises("datasets/prepare/export.py:export_labels", "name a new folder"):
        export(out)
    with advises("io/atomic.py:atomic_path", "name another folder"):
        export(out / "x/to")  # in a file
    assert export(tmp_path / "out2") == 3


# --- images of bands --------------------------------------------------------------------------


def test_bands_that_images_lack(tmp_path: Path) -> None:
    options = write_masks(tmp_path, ["a", "b"])
    for name, bands in (("a", 4), ("b", 5)):
        (tmp_path / f"images/{name}.jpg").unlink()
        np.save(tmp_path / f"images/{name}.npy", np.ones((6, 8, bands), np.float32))

    def prepared(*bands: int, layout: str = "HWC", **more: bool) -> CustomReport:
        return custom(tmp_path, bands=BandOptions(bands or None, layout), **options, **more)

    with advises("datasets/prepare/bands.py:_check_numbers", "choose those", "--bands"):
        prepared()
    with advises("datasets/prepare/bands.py:_measure", "--layout"):
        prepared(1, 2, layout="CHW")
    assert prepared(1, 2, 4).config
