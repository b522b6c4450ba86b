# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""VOC with SBD and Pascal Context, from every form in which they are published."""

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_archives import (
    Members,
    Voc,
    context_mat,
    detail_json,
    jpeg,
    labels_of,
    png_of,
    small,
    write_folder,
    write_tar,
)
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare import prepare
from mmseg_resnest.datasets.prepare.labels import bit_palette
from mmseg_resnest.datasets.prepare.pascal_context import CLASSES, NUMBERS_OF_459, PASCAL_CONTEXT
from mmseg_resnest.datasets.prepare.voc12aug import VOC12AUG
from mmseg_resnest.registry import DATASETS

prepare = functools.partial(prepare, jobs=1)


def numbers_of(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_voc12aug(tmp_path: Path, voc: Voc) -> None:
    main, extra, truth = voc
    sources = [
        write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", main),
        write_tar(tmp_path / "benchmark.tgz", extra),
    ]
    dataset = small(VOC12AUG, sources, trainaug=6, train=3, val=3)
    report = prepare(dataset, tmp_path, sources)
    assert report.counts == {"trainaug": 6, "train": 3, "val": 3}
    top = tmp_path / "voc2012/VOCdevkit/VOC2012"
    listed = (top / "ImageSets/Segmentation/trainaug.txt").read_text().split()
    assert listed == [f"2007_{n:06d}" for n in (0, 1, 2, 6, 7, 8)]  # none of val
    for name in listed:
        np.testing.assert_array_equal(
            numbers_of(top / f"SegmentationClassAug/{name}.png"), truth[name]
        )
    for name in (top / "ImageSets/Segmentation/val.txt").read_text().split():
        np.testing.assert_array_equal(
            numbers_of(top / f"SegmentationClass/{name}.png"), truth[name]
        )
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


def test_voc_labels_as_colours_or_with_another_palette(tmp_path: Path, voc: Voc) -> None:
    main, extra, truth = voc
    changed = dict(main)
    key = "VOCdevkit/VOC2012/SegmentationClass/2007_000004.png"
    changed[key] = png_of(bit_palette()[truth["2007_000004"]])
    key = "VOCdevkit/VOC2012/SegmentationClass/2007_000005.png"
    order = np.arange(256)[::-1]  # the same colours under other numbers
    shuffled = [int(v) for v in bit_palette()[order].reshape(-1)]
    changed[key] = png_of(255 - truth["2007_000005"], shuffled)
    source = write_folder(tmp_path / "source", changed | extra)
    prepare(small(VOC12AUG, trainaug=6, train=3, val=3), tmp_path, [source])
    for name in ("2007_000003", "2007_000004", "2007_000005"):
        made = tmp_path / f"voc2012/VOCdevkit/VOC2012/SegmentationClass/{name}.png"
        np.testing.assert_array_equal(numbers_of(made), truth[name])
    bad = bit_palette()[truth["2007_000004"]].copy()
    bad[2, 3] = (1, 2, 3)
    changed["VOCdevkit/VOC2012/SegmentationClass/2007_000004.png"] = png_of(bad)
    source = write_folder(tmp_path / "bad", changed | extra)
    with raises_user_error("label", "2007_000004.png"):
        prepare(small(VOC12AUG, trainaug=6, train=3, val=3), tmp_path / "other", [source])


def test_voc_without_sbd_or_an_image(tmp_path: Path, voc: Voc) -> None:
    main, extra, _ = voc
    dataset = small(VOC12AUG, trainaug=6, train=3, val=3)
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


def test_what_is_there_of_voc(tmp_path: Path, voc: Voc) -> None:
    """Ready label maps, with and without the lists that say which images are for training."""
    top = "VOCdevkit/VOC2012"
    part = {name: data for name, data in voc[0].items() if "JPEGImages" in name}
    for n in range(9):
        part[f"{top}/SegmentationClassAug/2007_{n:06d}.png"] = png_of(labels_of(n, 21))

    def trainaug(folder: str, **lists: str) -> tuple[list[str], int]:
        more = {f"{top}/ImageSets/Segmentation/{k}.txt": v.encode() for k, v in lists.items()}
        source = write_folder(tmp_path / folder, {**part, **more})
        report = prepare(VOC12AUG, tmp_path / f"{folder}_data", [source], allow_incomplete=True)
        made = tmp_path / f"{folder}_data/voc2012" / top / "ImageSets/Segmentation/trainaug.txt"
        return made.read_text().split(), sum("too good" in note for note in report.notes)

    names = [f"2007_{n:06d}" for n in range(9)]
    # Without val.txt the validation images may be among them, which a note says.
    assert trainaug("bare") == (names, 1)
    assert trainaug("val", val="\n".join(names[3:6])) == (names[:3] + names[6:], 0)
    listed = trainaug("listed", trainaug="\ufeff2007_000001\r\n2007_000008\r\n")
    assert listed == ([names[1], names[8]], 0)


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
            prepare(small(PASCAL_CONTEXT, train=3, val=2), tmp_path, sources)
        lines = "".join(f"{n}: {name}\n" for name, n in number.items()).replace(
            "table", "diningtable"
        )
        (tmp_path / "59_labels.txt").write_text(lines)
        sources.append(tmp_path / "59_labels.txt")
    else:
        pngs = {f"SegmentationClassContext/{n}.png": png_of(labels) for n, labels in truth.items()}
        sources.append(write_folder(tmp_path / "pngs", pngs))
    dataset = small(PASCAL_CONTEXT, sources[:1], train=3, val=2)
    assert prepare(dataset, tmp_path, sources).counts == {"train": 3, "val": 2}
    top = tmp_path / "pascal_context/VOCdevkit/VOC2010"
    for name, labels in truth.items():
        made = numbers_of(top / f"SegmentationClassContext/{name}.png")
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
    prepare(small(PASCAL_CONTEXT, train=1), tmp_path, [source])
    (made,) = (tmp_path / "pascal_context").rglob("*.png")
    np.testing.assert_array_equal(numbers_of(made), [[2, 1, 1], [2, 1, 1]])
