# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Folders of forms and layouts that differ a little from those that are read, and what helps."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from advice import advises, helps
from custom_sets import custom, label_map, recognised, told, write_labelme
from PIL import Image
from tiny_archives import encoded, jpeg, png_of, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare import export_labels

RANDOM = np.random.default_rng(0)
MAPS = {f"photo{name}": RANDOM.integers(0, 3, (6, 8), np.uint8) for name in "abcd"}
NAMES = "sky\nroad\ncar\n"


def photos(folder: Path, path: str = "images/{}.jpg") -> Path:
    write_folder(folder, {path.format(name): jpeg(n) for n, name in enumerate(MAPS)})
    return folder


def masks(folder: Path, path: str = "masks/{}.png") -> Path:
    write_folder(folder, {path.format(name): png_of(labels) for name, labels in MAPS.items()})
    return folder


def prepare(folder: Path, **more: Any) -> Any:
    """Returns the report; the prepared labels are compared with those that were drawn."""
    report = told(folder, **more)
    for name in report.splits["train"] + report.splits["val"]:
        made = label_map(folder.parent, name)
        assert np.array_equal(made, MAPS[Path(name).name]), name
    return report


@pytest.mark.parametrize(
    "path", ["images/{}_Mask.png", "masks/{}_MASK.png", "masks/{}.jpg.png", "images/{}-Label.png"]
)
def test_ends_of_names(tmp_path: Path, path: str) -> None:
    masks(photos(tmp_path / "s"), path)
    (tmp_path / "s/classes.txt").write_text(NAMES)
    assert [row[0] for row in prepare(tmp_path / "s").classes] == ["sky", "road", "car"]


def test_lists_of_pascal_voc(tmp_path: Path) -> None:
    """``trainval.txt`` is no list of validation images, whatever its name ends in."""
    folder = masks(photos(tmp_path / "s", "JPEGImages/{}.jpg"), "SegmentationClass/{}.png")
    lists = {"train": "photoa\nphotob\n", "val": "photoc\nphotod\n"}
    write_folder(
        folder / "ImageSets/Segmentation",
        {f"{name}.txt": text.encode() for name, text in lists.items()}
        | {"trainval.txt": "".join(lists.values()).encode()},
    )
    assert prepare(folder).splits["val"] == ["photoc", "photod"]


def test_lists_of_three_parts(tmp_path: Path) -> None:
    """Nothing is trained on that a list of test images names, unlabelled ones or not."""
    folder = masks(photos(tmp_path / "s"))
    for name, text in (("train", "photoa\nphotob\n"), ("val", "photoc\n"), ("test", "photod\nx\n")):
        (folder / f"{name}.txt").write_text(text)
    report = prepare(folder)
    assert report.splits == {"train": ["photoa", "photob"], "val": ["photoc"]}
    assert any(note.startswith("left out: 1 images") for note in report.notes)
    assert not (tmp_path / "data/mine/annotations/photod.png").exists()
    (folder / "val.txt").unlink()
    assert prepare(folder).splits == {"train": ["photoa", "photob", "photoc"], "val": ["photod"]}
    (folder / "test.txt").write_text("x\n")
    assert sum(map(len, prepare(folder).splits.values())) == 4


def test_lists_beside_json_files(tmp_path: Path) -> None:
    folder = tmp_path / "lm"
    write_labelme(tmp_path, ["cat", "dog"])
    for name in "zw":
        data = json.loads((folder / "x.json").read_text()) | {"imagePath": f"{name}.jpg"}
        files = {f"{name}.json": json.dumps(data).encode(), f"{name}.jpg": jpeg(ord(name))}
        write_folder(folder, files)
    write_folder(folder, {"train.txt": b"x\nw\n", "val.txt": b"y\n", "test.txt": b"z\n"})
    assert told(folder).splits == {"train": ["w", "x"], "val": ["y"]}
    (folder / "val.txt").unlink()
    assert told(folder).splits == {"train": ["w", "x", "y"], "val": ["z"]}


def test_masks_of_images_in_one_of_several_parts(tmp_path: Path) -> None:
    """MVTec counts the images of each folder from 0, and has masks of those to test on alone."""
    folder = masks(photos(tmp_path / "s", "test/crack/{}.png"), "ground_truth/crack/{}_mask.png")
    for n, name in enumerate(MAPS):
        write_folder(folder, {f"train/good/{name}.png": jpeg(n + 9)})
    with advises("datasets/prepare/recognise_masks.py:_check_parts", "--source", "--images"):
        prepare(folder)
    (tmp_path / "classes.txt").write_text(NAMES)
    custom(
        tmp_path, sources=(folder / "ground_truth/crack",), images=folder / "test/crack",
        form="index", label_suffix="_mask", classes=tmp_path / "classes.txt",
    )  # fmt: skip
    assert np.array_equal(label_map(tmp_path, "photoa"), MAPS["photoa"])


def test_parts_that_share_images_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for split in ("train", "val"):
        masks(photos(folder, f"{split}/images/{{}}.jpg"), f"{split}/masks/{{}}.png")
    assert any(note.startswith("4 images are in both parts") for note in prepare(folder).notes)


def test_a_part_without_masks_is_told(tmp_path: Path) -> None:
    folder = masks(photos(tmp_path / "s", "train/images/{}.jpg"), "train/masks/{}.png")
    write_folder(folder, {"val/images/photox.jpg": jpeg(9)})
    report = prepare(folder)
    assert sum(map(len, report.splits.values())) == 4
    assert "left out: the part 'val', without masks" in report.notes


def test_lists_of_images_without_masks(tmp_path: Path) -> None:
    folder = masks(photos(tmp_path / "s"))
    (folder / "val.txt").write_text("photoc\nphotod.jpg\n")
    (folder / "masks/photod.png").unlink()
    report = prepare(folder, allow_incomplete=True)
    assert report.splits == {"train": ["photoa", "photob"], "val": ["photoc"]}


def test_parts(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for split in ("valid", "test"):
        masks(photos(folder, f"{split}/{{}}.jpg"), f"{split}/{{}}_mask.png")
    helps(
        "datasets/prepare/layouts.py:choose_splits", "label images",
        call=lambda: prepare(folder),
        remedy=lambda: masks(photos(folder, "train/{}.jpg"), "train/{}_mask.png"),
    )  # fmt: skip
    shutil.rmtree(folder / "train")
    shutil.rmtree(folder / "valid")
    assert any("'test'" in note for note in prepare(folder).notes)  # alone, it is split


def test_class_lists_of_parts_are_one(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for split, names in (("train", "sky,road,car"), ("valid", "road,sky,car")):
        masks(photos(folder, f"{split}/{{}}.jpg"), f"{split}/{{}}_mask.png")
        rows = "".join(f"{n}, {name}\n" for n, name in enumerate(names.split(",")))
        (folder / split / "_classes.csv").write_text(f"Pixel Value, Class\n{rows}")
    with advises("datasets/prepare/recognise.py:_table", "--classes"):
        prepare(folder)
    report = prepare(folder, classes=folder / "train/_classes.csv")
    assert [row[0] for row in report.classes] == ["sky", "road", "car"]
    shutil.copy(folder / "train/_classes.csv", folder / "valid")
    assert prepare(folder).classes == report.classes


def test_masks_and_images_of_each_video(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for video in "xy":
        masks(photos(folder, f"{video}/images/{{}}.jpg"), f"{video}/masks/{{}}.png")

    def move() -> None:
        for kind in ("images", "masks"):
            for video in "xy":
                (folder / kind).mkdir(exist_ok=True)
                (folder / video / kind).rename(folder / kind / video)

    helps(
        "datasets/prepare/recognise_masks.py:found_masks", "move them",
        call=lambda: prepare(folder), remedy=move,
    )  # fmt: skip
    assert sum(map(len, prepare(folder).splits.values())) == 2 * len(MAPS)


YOLO = "0 0.1 0.1 0.5 0.1 0.5 0.5\n"
OTHERS: dict[str, Mapping[str, str]] = {
    "cvat.xml": {"annotations.xml": "<?xml version='1.0'?>\n<annotations><image/></annotations>"},
    "voc.xml": {"Annotations/photoa.xml": "<annotation><object/></annotation>"},
    "yolo.txt": {"labels/photoa.txt": YOLO, "data.yaml": "names: [box]\n"},
    "beside.txt": {"images/photoa.txt": YOLO, "classes.txt": NAMES},
    "via.json": {"via.json": json.dumps({"_via_img_metadata": {}}), "classes.json": '["a"]'},
    "studio.json": {"project.json": "[]"},
    "kaggle.csv": {"train.csv": "ImageId,EncodedPixels\na.jpg,1 3 10 5\n"},
    "scan.nii.gz": {"labelsTr/photoa.nii.gz": "volume"},
    "fields.geojson": {"fields.geojson": '{"type": "FeatureCollection"}'},
    "data.parquet": {"data/train-00000-of-00001.parquet": "PAR1"},
    "arrays.mat": {"GTcls/photoa.mat": "MATLAB 5.0"},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_labels_of_other_forms_are_named(tmp_path: Path, kind: str) -> None:
    photos(tmp_path / "s")
    write_folder(tmp_path / "s", {name: text.encode() for name, text in OTHERS[kind].items()})
    with raises_user_error("empty", "s") as caught:
        prepare(tmp_path / "s")
    assert f"({next(iter(OTHERS[kind]))})" in caught.value.message


def test_what_is_done_with_other_files(tmp_path: Path) -> None:
    """Unpacked, converted, put beside their masks: then they are read."""
    packed = tmp_path / "packed"
    packed.mkdir()
    shutil.make_archive(str(packed / "data"), "zip", masks(photos(tmp_path / "all")))
    masks(tmp_path / "alone")
    other = photos(tmp_path / "other")
    for name, labels in MAPS.items():
        write_folder(other / "masks", {f"{name}.gif": encoded(labels, "GIF")})
    for folder, first in ((packed, "data.zip"), (tmp_path / "alone", "masks/"), (other, "masks/")):
        with raises_user_error("empty", folder.name) as caught:
            prepare(folder)
        assert f"({first}" in caught.value.message
    shutil.unpack_archive(packed / "data.zip", packed)
    photos(tmp_path / "alone")
    for file in list((other / "masks").iterdir()):
        Image.open(file).convert("L").save(file.with_suffix(".png"))
        file.unlink()
    for folder in (packed, tmp_path / "alone", other):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        assert prepare(folder)


def test_names_that_are_almost_one(tmp_path: Path) -> None:
    """As people type them: a note has the option that merges them."""
    options = write_labelme(tmp_path, ["Car", "car ", "traffic light", "traffic_light"])
    notes = custom(tmp_path, **options).notes
    merged = {"car ": "Car", "traffic_light": "traffic light"}
    for name, other in merged.items():
        assert any(f"--label-map '{name}={other}'" in n or f"{name}={other}" in n for n in notes)
    report = custom(tmp_path, **options, label_map=merged)
    assert [row[0] for row in report.classes] == ["Car", "traffic light"]
    assert not any("almost" in note for note in report.notes)


def test_images_that_no_json_file_names_are_told(tmp_path: Path) -> None:
    options = write_labelme(tmp_path, ["cat", "dog"])
    assert not any("left out" in note for note in custom(tmp_path, **options).notes)
    write_folder(tmp_path / "lm", {"new.jpg": jpeg(7), "other.PNG": jpeg(8)})
    told = [note for note in custom(tmp_path, **options).notes if "left out" in note]
    assert len(told) == 1 and told[0].startswith("2 images") and "new.jpg" in told[0]


def test_masks_as_arrays(tmp_path: Path) -> None:
    folder = photos(tmp_path / "s")
    (folder / "masks").mkdir()
    for name, labels in MAPS.items():
        np.save(folder / "masks" / f"{name}.npy", labels)

    def save() -> None:
        for file in list((folder / "masks").iterdir()):
            Image.fromarray(np.load(file)).save(file.with_suffix(".png"))
            file.unlink()

    helps("datasets/prepare/recognise_masks.py:found_masks", "save them as PNG",
          call=lambda: prepare(folder), remedy=save)  # fmt: skip


def test_nothing_is_written_among_the_images(tmp_path: Path) -> None:
    """Where the name and the root are those of the folder of the images, or one above it."""
    folder = masks(photos(tmp_path / "s/images/here"), "../../masks/here/{}.png")
    for file in (folder / "images").iterdir():
        file.rename(folder / file.name)
    (folder / "images").rmdir()
    (tmp_path / "s/classes.txt").write_text(NAMES)
    source = tmp_path / "s"
    options: dict[str, Any] = dict(form="index", sources=(source / "masks",))
    options |= dict(images=source / "images", classes=source / "classes.txt")
    before = sorted(source.rglob("*"))
    for name, root in (("images", "s"), ("masks", "s"), ("s", ".")):
        with advises("datasets/prepare/outputs.py:check_apart", "--name", "--root"):
            custom(tmp_path, root, name=name, **options)
        assert sorted(source.rglob("*")) == before
    assert custom(tmp_path, "s", name="mine", **options)
    assert custom(tmp_path, "elsewhere", name="images", **options)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_accents_in_names(tmp_path: Path, forms: tuple[str, str]) -> None:
    """macOS writes them as characters of their own, annotation tools mostly do not."""
    for n, name in enumerate("äé"):
        image, label = (unicodedata.normalize(form, name) for form in forms)
        write_folder(tmp_path / "s/images", {f"{image}.jpg": jpeg(n)})
        write_folder(tmp_path / "s/masks", {f"{label}.png": png_of(MAPS["photoa"])})
        shape = dict(label="a", points=[[0, 0], [4, 0], [4, 6], [0, 6]])
        other = dict(label="b", points=[[4, 0], [8, 0], [8, 6], [4, 6]])
        data = dict(shapes=[shape, other], imagePath=f"../images/{label}.jpg", imageData=None)
        write_folder(tmp_path / "json", {f"{label}.json": json.dumps(data).encode()})
    report = told(tmp_path / "s")
    for name in report.splits["train"] + report.splits["val"]:
        assert np.array_equal(label_map(tmp_path, name), MAPS["photoa"])
    in_list = tmp_path / "val.txt"
    in_list.write_text(f"{label}\n")
    listed, _ = recognised(tmp_path / "s", val_list=in_list)
    report = custom(tmp_path, "listed", force=True, **vars(listed))
    assert report.splits["val"] == [image]
    of_json: dict[str, Any] = dict(images=tmp_path / "s/images", sources=(tmp_path / "json",))
    report = custom(tmp_path, "other", force=True, form="labelme", **of_json)
    assert [row[0] for row in report.classes] == ["a", "b"]
    for file in (tmp_path / "json").iterdir():
        file.write_text(file.read_text().replace("../images/", ""))
    (tmp_path / "json").rename(tmp_path / "apart")
    shutil.copytree(tmp_path / "s/images", tmp_path / "apart/pictures")
    assert recognised(tmp_path / "apart")[0].images == tmp_path / "apart/pictures"
    (tmp_path / "names.txt").write_text(NAMES)
    parts = tmp_path / "s/images", tmp_path / "s/masks"
    assert export_labels(*parts, tmp_path / "names.txt", "coco", tmp_path / "out", 1) == 2


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("path", ["masks/bïg/{}.png", "masks/{}/bïg.png"])
@pytest.mark.parametrize("listed", [False, True])
def test_accents_in_names_of_one_mask_a_class(
    tmp_path: Path, forms: tuple[str, str], path: str, listed: bool
) -> None:
    for n, name in enumerate("äéü"):
        image, label = (unicodedata.normalize(form, name) for form in forms)
        write_folder(tmp_path / "s/images", {f"{image}.jpg": jpeg(n)})
        file = tmp_path / "s" / unicodedata.normalize(forms[1], path.format(label))
        write_folder(file.parent, {file.name: png_of(MAPS["photoa"])})
    classes = tmp_path / "names.txt"
    classes.write_text(unicodedata.normalize(forms[0], "bïg\n"))
    report = told(tmp_path / "s", multilabel=True, classes=classes if listed else None)
    for name in report.splits["train"] + report.splits["val"]:
        assert np.array_equal(label_map(tmp_path, name), MAPS["photoa"] > 0)
