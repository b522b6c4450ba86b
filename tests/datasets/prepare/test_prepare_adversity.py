# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What people's folders hold besides what they should: names, marks, loops, shapes, strays."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from tiny_archives import Members, jpeg, labels_of, png_of, sbd_mat, tree, write_folder, write_zip
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare import CustomOptions, CustomReport, DataSet, prepare
from mmseg_resnest.datasets.prepare.ade20k import ADE20K
from mmseg_resnest.datasets.prepare.cityscapes import CITYSCAPES
from mmseg_resnest.datasets.prepare.custom import prepare_custom
from mmseg_resnest.datasets.prepare.voc12aug import VOC12AUG
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.errors import UserError
from mmseg_resnest.registry import DATASETS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs made here name their own."""
    monkeypatch.delenv("MMSEG_RESNEST_DATA", raising=False)


@functools.cache
def base() -> Config:
    return load_config(ROOT / "configs/fcn_resnest14_scenes.py")


def custom(tmp_path: Path, root: str = "data", epochs: int = 2, **options: Any) -> CustomReport:
    filled: dict[str, Any] = {"name": "mine", "group_pattern": "(.*)", **options}
    return prepare_custom(
        CustomOptions(**filled), tmp_path / root, tmp_path / "configs", base(), epochs, jobs=1
    )


def index_options(tmp_path: Path, names: list[str], suffix: str = ".jpg") -> dict[str, Any]:
    """Index masks of these names, their images and class list, as options."""
    for n, name in enumerate(names):
        write_folder(tmp_path / "images", {f"{name}{suffix}": jpeg(n)})
        write_folder(tmp_path / "labels", {f"{name}.png": png_of(labels_of(n, 3))})
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    return dict(
        form="index", sources=(tmp_path / "labels",), images=tmp_path / "images",
        classes=tmp_path / "classes.txt",
    )  # fmt: skip


def samples_of(config: Path, **options: Any) -> list[dict]:
    """What the config's training and validation load."""
    cfg = load_config(config, **options)
    found = []
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        for split in ("train", "val"):
            dataset = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
            found += [dataset.get_data_info(n) for n in range(len(dataset))]
            assert dataset[0]
    return found


# ---- names, marks and places


@pytest.mark.parametrize(
    "names",
    [
        ["straße 1", "字 2", " lead", "trail ", "a\tb"],
        ["deep er/x.y.z", "deep er/#1", "100%", "{{a}}", "'q\""],
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".Jpeg"])
def test_names_of_images(tmp_path: Path, names: list[str], suffix: str) -> None:
    report = custom(tmp_path, **index_options(tmp_path, names, suffix))
    samples = samples_of(report.config)
    assert len(samples) == len(names)
    for sample in samples:
        assert Path(sample["img_path"]).is_file()
        assert Path(sample["seg_map_path"]).is_file()
    assert custom(tmp_path, **index_options_again(tmp_path)).unchanged


def index_options_again(tmp_path: Path) -> dict[str, Any]:
    return index_options(tmp_path, [])


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", os.fsdecode(b"caf\xe9")])
def test_names_that_no_list_can_hold(tmp_path: Path, name: str) -> None:
    with raises_user_error("dataset") as error:
        custom(tmp_path, **index_options(tmp_path, ["x", name]))
    assert str(error.value).isprintable()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("root", ["my data (1)", "c++ [x]", "dätä", 'quo"te', "plain"])
def test_any_data_root(tmp_path: Path, root: str) -> None:
    report = custom(tmp_path, root, **index_options(tmp_path, ["x", "y", "z"]))
    assert len(samples_of(report.config)) == 3
    (tmp_path / root).rename(tmp_path / "moved")
    with raises_user_error("not-found", "classes.json"):
        samples_of(report.config)
    assert len(samples_of(report.config, data_root=tmp_path / "moved")) == 3


def test_relative_paths_and_windows_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    index_options(tmp_path, ["d/x", "y", "z"])
    Path("classes.txt").write_bytes("\ufeffa\r\nb\r\nc\r\n".encode())
    Path("val.txt").write_bytes("\ufeffd\\x.jpg\r\n\r\n".encode())
    options: dict[str, Any] = dict(
        form="index", sources=(Path("labels"),), images=Path("images"),
        classes=Path("classes.txt"), val_list=Path("val.txt"),
    )  # fmt: skip
    report = custom(Path(), **options)
    assert [name for name, *_ in report.classes] == ["a", "b", "c"]
    assert report.splits == {"train": ["y", "z"], "val": ["d/x"]}
    for split in Path("data/mine/splits").iterdir():  # as an editor on Windows saves it
        split.write_bytes(b"\xef\xbb\xbf" + split.read_bytes().replace(b"\n", b" \r\n"))
    assert len(samples_of(report.config)) == 3


def test_a_root_that_is_a_file_and_names_that_are_taken(tmp_path: Path) -> None:
    options = index_options(tmp_path, ["x", "y", "z"])
    (tmp_path / "file").touch()
    with raises_user_error("not-writable", "mine"):
        custom(tmp_path, "file", **options)
    with raises_user_error("argument", "--epochs 0"):
        custom(tmp_path, epochs=0, **options)
    ade = {f"images/validation/{n}.jpg": jpeg(0) for n in "xy"}
    ade |= {f"annotations/validation/{n}.png": png_of(labels_of(0, 3)) for n in "xy"}
    source = write_folder(tmp_path / "ade", ade)
    small = replace(ADE20K, archives=(), expected={"validation": 2})
    prepare(small, tmp_path / "data", [source], jobs=1)
    with raises_user_error("output-exists", "--name ade20k"):
        custom(tmp_path, **{**options, "name": "ade20k"})
    custom(tmp_path, "other", **{**options, "name": "ade20k"})
    with raises_user_error("output-exists", "ade20k"):
        prepare(small, tmp_path / "other", [source], jobs=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    options = index_options(tmp_path, ["x", "y", "z"])
    (tmp_path / "data").mkdir(mode=0o555)
    with pytest.raises(UserError, match="cannot be written"):
        custom(tmp_path, **options)


def test_loops_of_links(tmp_path: Path) -> None:
    options = index_options(tmp_path, ["a/x", "a/y", "z"])
    for folder in ("images", "labels"):
        (tmp_path / folder / "a" / "up").symlink_to(tmp_path / folder)
        (tmp_path / folder / "a" / "here").symlink_to(".")
    report = custom(tmp_path, **options)
    assert sorted([*report.splits["train"], *report.splits["val"]]) == ["a/x", "a/y", "z"]
    for folder in ("images", "annotations"):
        (tmp_path / "data/mine" / folder / "a" / "up").symlink_to("..")
        (tmp_path / "data/mine" / folder / "a" / "here").symlink_to(".")
    assert len(samples_of(report.config)) == 3
    (tmp_path / "labels/self.png").symlink_to("self.png")
    with raises_user_error("unreadable", "self.png"):
        custom(tmp_path, **options)


# ---- masks


def test_masks_among_the_images(tmp_path: Path) -> None:
    for n, name in enumerate(("x", "y", "deep/z")):
        files = {f"{name}.png": png_of(labels_of(n, 255)), f"{name}_mask.PNG": png_of(
            labels_of(n, 3))}  # fmt: skip
        write_folder(tmp_path / "all", files)
    write_folder(tmp_path / "all", {"Thumbs.db": b"", ".DS_Store": b"", "notes.txt": b""})
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    options: dict[str, Any] = dict(
        form="index", sources=(tmp_path / "all",), images=tmp_path / "all",
        classes=tmp_path / "classes.txt", label_suffix="_mask",
    )  # fmt: skip
    report = custom(tmp_path, **options)
    assert sorted([*report.splits["train"], *report.splits["val"]]) == ["deep/z", "x", "y"]
    made = np.asarray(Image.open(tmp_path / "data/mine/annotations/deep/z.png"))
    np.testing.assert_array_equal(made, labels_of(2, 3))
    write_folder(tmp_path / "all", {"x_mask.bmp": b""})
    with raises_user_error("dataset", "x_mask.bmp"):
        custom(tmp_path, **options)


def test_masks_of_few_bits_and_of_one_pixel(tmp_path: Path) -> None:
    import cv2

    options = index_options(tmp_path, ["x", "y", "z", "one"])
    few = labels_of(0, 3)
    for name, bits in (("x", 2), ("y", 4)):
        file = str(tmp_path / f"labels/{name}.png")
        write_png_of_few_bits(Path(file), few, bits)
        assert cv2.imread(file, cv2.IMREAD_UNCHANGED).max() > 2  # decoders spread them
    write_folder(tmp_path / "images", {"one.jpg": jpeg(0, (1, 1))})
    write_folder(tmp_path / "labels", {"one.png": png_of(np.array([[2]], np.uint8))})
    custom(tmp_path, **options)
    for name, expected in (("x", few), ("y", few), ("one", [[2]])):
        made = np.asarray(Image.open(tmp_path / f"data/mine/annotations/{name}.png"))
        np.testing.assert_array_equal(made, expected)


def write_png_of_few_bits(file: Path, labels: np.ndarray, bits: int) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(
            ">I", zlib.crc32(kind + body))  # fmt: skip

    height, width = labels.shape
    unpacked = np.unpackbits(labels[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in unpacked)
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def test_a_mask_larger_than_its_image(tmp_path: Path) -> None:
    options = index_options(tmp_path, ["x", "y"])
    write_folder(tmp_path / "labels", {"y.png": png_of(labels_of(0, 3, (80, 60)))})
    with raises_user_error("size-mismatch", "y.png"):
        custom(tmp_path, **options)
    assert not list((tmp_path / "data/mine/.prepare").glob("tmp/*"))


# ---- LabelMe


def labelme(tmp_path: Path, shape: Any, **more: Any) -> dict[str, Any]:
    box = dict(label="a", points=[[0, 0], [4, 6]], shape_type="rectangle")
    data = dict(shapes=[box, shape], imagePath="x.jpg", imageData=None, **more)
    for n, name in enumerate("xy"):
        write_folder(tmp_path / "lm", {f"{name}.jpg": jpeg(n)})
        (tmp_path / f"lm/{name}.json").write_text(
            json.dumps({**data, "imagePath": f"C:\\photos\\{name}.jpg"})
        )
    return dict(form="labelme", sources=(tmp_path / "lm",))


def bitmap(height: int, width: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.ones((height, width), np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


BAD_SHAPES: dict[str, Any] = {
    "no label": dict(label=None, points=[[0, 0]]),
    "empty label": dict(label=" ", points=[[0, 0]]),
    "no points": dict(label="b", points=None),
    "not a shape": 7,
    "point": dict(label="b", points=[[1, 1]], shape_type="point"),
    "unknown": dict(label="b", points=[[1, 1]], shape_type="cuboid"),
    "rectangle of one point": dict(label="b", points=[[1, 1]], shape_type="rectangle"),
    "circle of one point": dict(label="b", points=[[1, 1]], shape_type="circle"),
    "circle without a number": dict(
        label="b", points=[[1, float("nan")], [2, 2]], shape_type="circle"
    ),
    "polygon without a number": dict(label="b", points=[[1, float("nan")], [2, 2], [3, 4]]),
    "mask larger than the image": dict(
        label="b", points=[[0, 0]], shape_type="mask", mask=bitmap(9, 9)
    ),
    "mask that is none": dict(label="b", points=[[0, 0]], shape_type="mask", mask="!"),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_bad_labelme_shapes(tmp_path: Path, name: str) -> None:
    shape = BAD_SHAPES[name]
    with raises_user_error("annotation", "x.json") as error:
        custom(tmp_path, **labelme(tmp_path, shape))
    assert "x.json" in str(error.value)


def test_labelme_files_from_another_computer(tmp_path: Path) -> None:
    """Paths of Windows, images in capitals, a mark at the front."""
    ring = dict(label="b", points=[[4, 0], [8, 0], [8, 6], [4, 6]], shape_type="polygon")
    options = labelme(tmp_path, ring)
    (tmp_path / "lm/x.jpg").rename(tmp_path / "lm/x.JPG")
    text = (tmp_path / "lm/y.json").read_text()
    (tmp_path / "lm/y.json").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    report = custom(tmp_path, **options)
    for name in "xy":
        made = np.asarray(Image.open(tmp_path / f"data/mine/annotations/{name}.png"))
        np.testing.assert_array_equal(made, np.repeat([[0] * 4 + [1] * 4], 6, axis=0))
    assert len(samples_of(report.config)) == 2
    data = json.loads(text)
    (tmp_path / "lm/y.jpg").unlink()
    for content in ("%%%", 5):
        (tmp_path / "lm/y.json").write_text(json.dumps({**data, "imageData": content}))
        with raises_user_error(("annotation", "image"), "y.json"):
            custom(tmp_path, **options)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"shapes": {}}', "{", "\ufeff"])
def test_json_files_that_are_no_labels(tmp_path: Path, text: str) -> None:
    write_folder(tmp_path / "c", {"x.json": text.encode()})
    for form in ("labelme", "coco"):
        with raises_user_error(("annotation", "format"), "x.json"):
            custom(tmp_path, form=form, sources=(tmp_path / "c",))


# ---- COCO


def coco(tmp_path: Path, *segmentations: Any, **more: Any) -> dict[str, Any]:
    """Two images; annotations of the first one."""
    write_folder(tmp_path / "c", {f"a_{n}.jpg": jpeg(n) for n in range(2)})
    whole = [[0, 0, 8, 0, 8, 6, 0, 6]]
    annotations = [dict(id=1, image_id=0, category_id=1, segmentation=whole, iscrowd=0)]
    for number, segmentation in enumerate(segmentations, start=2):
        annotations.append(
            dict(id=number, image_id=0, category_id=2, iscrowd=1, bbox=[0, 0, 1, 1])
            | ({} if segmentation is None else dict(segmentation=segmentation))
        )
    data = dict(
        images=[dict(id=n, file_name=f"a_{n}.jpg") for n in range(2)],
        categories=[dict(id=1, name="a"), dict(id=2, name="b")],
        annotations=annotations,
    )
    (tmp_path / "c/x.json").write_text(json.dumps({**data, **more}))
    return dict(form="coco", sources=(tmp_path / "c/x.json",))


def test_crowds_of_coco_and_images_without_labels(tmp_path: Path) -> None:
    runs = dict(size=[6, 8], counts=[0, 12, 36])
    report = custom(tmp_path, **coco(tmp_path, runs))
    made = np.asarray(Image.open(tmp_path / "data/mine/annotations/a_0.png"))
    np.testing.assert_array_equal(made, np.repeat([[1] * 2 + [0] * 6], 6, axis=0))
    assert any("1 images have no labelled pixel, e.g. a_1" in note for note in report.notes)
    again = custom(tmp_path, **coco_again(tmp_path))
    assert again.unchanged
    assert again.notes == report.notes


def coco_again(tmp_path: Path) -> dict[str, Any]:
    return dict(form="coco", sources=(tmp_path / "c/x.json",))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "is no COCO file of .*'segmentation'"),
        ([], "annotation 2 of a_0.jpg cannot be drawn .*only a box"),
        ([[]], "annotation 2 of a_0.jpg cannot be drawn"),
        ([["a"] * 6], "annotation 2 of a_0.jpg cannot be drawn"),
        (dict(size=[6, 8], counts="~~"), "annotation 2 of a_0.jpg cannot be drawn"),
        (dict(size=[600, 800], counts=[480000]), "its size is"),
        (dict(counts=[48]), "annotation 2 of a_0.jpg cannot be drawn"),
    ],
)
def test_bad_coco_annotations(tmp_path: Path, segmentation: Any, message: str) -> None:
    with raises_user_error("annotation", "x.json") as error:
        custom(tmp_path, **coco(tmp_path, segmentation))
    assert "x.json" in str(error.value)


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, 5, ["x"], {"a": 1}])
def test_coco_files_of_another_shape(tmp_path: Path, part: str, value: Any) -> None:
    with raises_user_error("annotation", "x.json"):
        custom(tmp_path, **coco(tmp_path, **{part: value}))


# ---- archives as they are published, with what else they hold


STRAYS: Members = {
    "__MACOSX/": b"",
    ".DS_Store": b"\0",
    "README": b"",
    "license.txt": b"terms",
}


def with_strays(members: Members, top: str) -> Members:
    """As a Mac packs it: a shadow of every file, and folders with entries of their own."""
    full: dict[str, bytes] = {f"{top}/": b"", **STRAYS}
    for name, data in members.items():
        folder, _, file = name.rpartition("/")
        full.setdefault(f"{folder}/", b"")
        full[name] = data
        full[f"__MACOSX/{folder}/._{file}"] = b"\0\5\x16\7"
        full[f"{folder}/._{file}"] = b"\0\5\x16\7"
        full.setdefault(f"{folder}/.DS_Store", b"")
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
                archive.addfile(info)
                continue
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if links:
            info = tarfile.TarInfo("./code/latest")
            info.type, info.linkname = tarfile.SYMTYPE, "../../../etc"
            archive.addfile(info)
    return file


def official(dataset: DataSet, files: list[Path], **expected: int) -> DataSet:
    """The data set with the counts and hashes of small archives."""
    hashes = {file.name: hashlib.sha1(file.read_bytes()).hexdigest() for file in files}
    archives = [replace(a, sha1=hashes.get(a.name), md5=None) for a in dataset.archives]
    return replace(dataset, archives=tuple(archives), expected=expected)


def test_ade20k_with_strays(tmp_path: Path) -> None:
    top = "ADEChallengeData2016"
    members = {f"{top}/objectInfo150.txt": b"x", f"{top}/sceneCategories.txt": b"y"}
    for split in ("training", "validation"):
        for n in range(3):
            members[f"{top}/images/{split}/ADE_{n:08d}.jpg"] = jpeg(n)
            members[f"{top}/annotations/{split}/ADE_{n:08d}.png"] = png_of(labels_of(n, 151))
    (tmp_path / "a/downloads").mkdir(parents=True)
    files = [write_zip(tmp_path / "a/downloads" / f"{top}.zip", with_strays(members, top))]
    test = {f"release_test/testing/ADE_{n:08d}.jpg": jpeg(n) for n in range(9, 11)}
    write_zip(tmp_path / "a/downloads/release_test.zip", {**test, "release_test/list.txt": b""})
    dataset = official(ADE20K, files, training=3, validation=3)
    report = prepare(dataset, tmp_path / "data", [tmp_path / "a"], jobs=1)
    assert report.counts == {"training": 3, "validation": 3, "testing": 2}
    assert set(tree(tmp_path / "data/ade20k")) == set(members) | {
        name.replace("release_test/testing", f"{top}/images/testing") for name in test
    }
    assert [note for note in report.notes if "release_test.zip" in note]  # its hash is not known
    assert not [note for note in report.notes if top in note]


def test_cityscapes_with_strays(tmp_path: Path) -> None:
    images, labels = {}, {}
    for split, cities in (("train", "ab"), ("val", "c"), ("test", "d")):
        for city in cities:
            stem = f"{split}/{city}/{city}_000000_000019"
            images[f"leftImg8bit/{stem}_leftImg8bit.png"] = png_of(labels_of(1, 255))
            for kind in ("color", "instanceIds", "labelIds"):
                labels[f"gtFine/{stem}_gtFine_{kind}.png"] = png_of(labels_of(2, 34))
            labels[f"gtFine/{stem}_gtFine_polygons.json"] = b"{}"
    files = [
        write_zip(tmp_path / "leftImg8bit_trainvaltest.zip", with_strays(images, "leftImg8bit")),
        write_zip(tmp_path / "gtFine_trainvaltest.zip", with_strays(labels, "gtFine")),
    ]
    dataset = official(CITYSCAPES, files, train=2, val=1, test=1)
    report = prepare(dataset, tmp_path / "data", [tmp_path], jobs=1)
    assert report.counts == {"train": 2, "val": 1, "test": 1}
    assert not report.notes
    assert len(tree(tmp_path / "data/cityscapes")) == 4 + 4 * 3 + 3
    with raises_user_error("corrupt", "gtFine_trainvaltest.zip"):
        prepare(CITYSCAPES, tmp_path / "other", [files[1]], jobs=1)


def voc_members() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """0..2 of train, 3..5 of val, 6..8 of SBD; 4 in SBD too."""
    top, sbd = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
    names = [f"2007_{number:06d}" for number in range(9)]
    main = {f"{top}/JPEGImages/{name}.jpg": jpeg(n) for n, name in enumerate(names)}
    for n, name in enumerate(names[:6]):
        main[f"{top}/SegmentationClass/{name}.png"] = png_of(labels_of(n, 21))
        main[f"{top}/SegmentationObject/{name}.png"] = png_of(labels_of(n, 21))
        main[f"{top}/Annotations/{name}.xml"] = b"<annotation/>"
    for kind in ("Main", "Action", "Layout", "Segmentation"):
        main[f"{top}/ImageSets/{kind}/train.txt"] = "\r\n".join(names[:3]).encode()
        main[f"{top}/ImageSets/{kind}/val.txt"] = "\n".join(names[3:6]).encode()
        main[f"{top}/ImageSets/{kind}/trainval.txt"] = "\n".join(names[:6]).encode()
    extra = {}
    for n in (4, 6, 7, 8):
        extra[f"{sbd}/cls/{names[n]}.mat"] = sbd_mat(labels_of(n, 21))
        extra[f"{sbd}/inst/{names[n]}.mat"] = sbd_mat(labels_of(n, 21))
        extra[f"{sbd}/img/{names[n]}.jpg"] = jpeg(n)
    extra[f"{sbd}/train.txt"] = "\n".join(names[n] for n in (4, 6)).encode()
    extra[f"{sbd}/val.txt"] = "\n".join(names[n] for n in (7, 8)).encode()
    extra["benchmark_RELEASE/benchmark_code_RELEASE/train.txt"] = b"not a list"
    return main, extra


def test_voc_and_sbd_with_strays(tmp_path: Path) -> None:
    main, extra = voc_members()
    files = [
        write_dotted_tar(tmp_path / "VOCtrainval_11-May-2012.tar", with_strays(main, "VOCdevkit")),
        write_dotted_tar(
            tmp_path / "benchmark.tgz", with_strays(extra, "benchmark_RELEASE"), links=True
        ),
    ]
    dataset = official(VOC12AUG, files, trainaug=6, train=3, val=3)
    report = prepare(dataset, tmp_path / "data", files, jobs=1)
    assert report.counts == {"trainaug": 6, "train": 3, "val": 3}
    assert not report.notes
    assert not [name for name in tree(tmp_path / "data") if "/." in name]
    # A link is passed over in the publisher's own archive only.
    unknown = replace(dataset, archives=())
    with raises_user_error("unsafe-path", "benchmark.tgz"):
        prepare(unknown, tmp_path / "other", files, jobs=1)


def test_links_lead_nowhere_in_official_archives_either(tmp_path: Path) -> None:
    from mmseg_resnest.datasets.prepare.archives import list_archive

    file = write_dotted_tar(tmp_path / "a.tar", {"x": b"1"}, links=True)
    assert [p.name for p in list_archive(file, tmp_path, "", official=True)] == ["./x"]
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
        archive.writestr("x", "1")
    found = list_archive(tmp_path / "a.zip", tmp_path, "", official=True)
    assert [place.name for place in found] == ["x"]


def test_what_is_there_of_voc(tmp_path: Path) -> None:
    """Ready label maps, with and without the lists that say which images are for training."""
    main, _ = voc_members()
    top = "VOCdevkit/VOC2012"
    part = {name: data for name, data in main.items() if "JPEGImages" in name}
    for n in range(9):
        part[f"{top}/SegmentationClassAug/2007_{n:06d}.png"] = png_of(labels_of(n, 21))

    def trainaug(folder: str, **lists: str) -> tuple[list[str], list[str]]:
        more = {f"{top}/ImageSets/Segmentation/{k}.txt": v.encode() for k, v in lists.items()}
        source = write_folder(tmp_path / folder, {**part, **more})
        report = prepare(VOC12AUG, tmp_path / f"{folder}_data", [source], False, True, jobs=1)
        made = tmp_path / f"{folder}_data/voc2012" / top / "ImageSets/Segmentation/trainaug.txt"
        notes = [note for note in report.notes if "val.txt" in note]
        return made.read_text().split(), notes

    names = [f"2007_{n:06d}" for n in range(9)]
    # Nothing says which images are of the validation set: it is told that they are not left out.
    assert trainaug("bare")[0] == names
    assert "too good" in trainaug("bare")[1][0]
    assert trainaug("val", val="\n".join(names[3:6])) == (names[:3] + names[6:], [])
    assert trainaug("listed", trainaug="\ufeff2007_000001\r\n2007_000008\r\n") == (
        [names[1], names[8]],
        [],
    )
