# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Folders as annotation tools leave them, told by their files and prepared."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from custom_sets import custom, label_map, recognised, told
from PIL import Image
from tiny_archives import jpeg, png_of, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare import CustomOptions, export_labels, recognise_options

NAMES = ("sky", "road", "car")
COLOURS = np.array([(10, 20, 30), (40, 50, 60), (70, 80, 90)], dtype=np.uint8)
Truth = dict[str, np.ndarray]


@pytest.fixture
def truth() -> Truth:
    """Six label maps of three classes; the last one is of the part for validation."""
    maps = {}
    for n in range(6):
        maps[f"photo{'abcdef'[n]}"] = np.random.default_rng(n).integers(0, 3, (6, 8), np.uint8)
    return maps


def _images(folder: Path, names: list[str]) -> None:
    write_folder(folder, {f"{name}.jpg": jpeg(ord(name[-1])) for name in names})


def _export(folder: Path, part: Truth, form: str) -> Path:
    """Writes a part in a form with the package's own export."""
    _images(folder / "in/images", list(part))
    write_folder(folder / "in/labels", {f"{n}.png": png_of(m) for n, m in part.items()})
    (folder / "in/classes.txt").write_text("\n".join(NAMES))
    out = folder / "out"
    export_labels(folder / "in/images", folder / "in/labels", folder / "in/classes.txt", form, out)
    return out


def _parts(truth: Truth) -> dict[str, Truth]:
    names = list(truth)
    return {
        "train": {name: truth[name] for name in names[:5]},
        "valid": {name: truth[name] for name in names[5:]},
    }


def roboflow_coco(folder: Path, truth: Truth) -> None:
    for split, part in _parts(truth).items():
        out = _export(folder.parent / f"{split}_export", part, "coco")
        _images(folder / split, list(part))
        data = json.loads((out / "annotations.json").read_text())
        for entry in data["images"]:
            entry["file_name"] = Path(entry["file_name"]).name
        (folder / split / "_annotations.coco.json").write_text(json.dumps(data))


def cvat_coco(folder: Path, truth: Truth) -> None:
    out = _export(folder.parent / "export", truth, "coco-rle")
    _images(folder / "images/default", list(truth))
    (folder / "annotations").mkdir()
    data = json.loads((out / "annotations.json").read_text())
    for entry in data["images"]:
        entry["file_name"] = Path(entry["file_name"]).name
    (folder / "annotations/instances_default.json").write_text(json.dumps(data))


def coco_of_parts(folder: Path, truth: Truth) -> None:
    for split, part in _parts(truth).items():
        out = _export(folder.parent / f"{split}_export", part, "coco")
        _images(folder / f"{split}2017", list(part))
        (folder / "annotations").mkdir(exist_ok=True)
        text = (out / "annotations.json").read_text().replace("images/", "")
        (folder / f"annotations/instances_{split}2017.json").write_text(text)


def labelme(folder: Path, truth: Truth) -> None:
    shutil.copytree(_export(folder.parent / "export", truth, "labelme"), folder)


def labelme_of_parts(folder: Path, truth: Truth) -> None:
    for split, part in _parts(truth).items():
        out = _export(folder.parent / f"{split}_export", part, "labelme")
        shutil.copytree(out, folder / split)


def index_masks(folder: Path, truth: Truth) -> None:
    _images(folder / "images", list(truth))
    write_folder(folder / "masks", {f"{n}.png": png_of(m) for n, m in truth.items()})
    (folder / "classes.txt").write_text("\n".join(NAMES))


def roboflow_masks(folder: Path, truth: Truth) -> None:
    for split, part in _parts(truth).items():
        _images(folder / split, list(part))
        write_folder(folder / split, {f"{n}_mask.png": png_of(m) for n, m in part.items()})
        lines = [f"{n}, {name}" for n, name in enumerate(NAMES)]
        (folder / split / "_classes.csv").write_text("Pixel Value, Class\n" + "\n".join(lines))


def cvat_masks(folder: Path, truth: Truth) -> None:
    _images(folder / "JPEGImages", list(truth))
    for kind in ("SegmentationClass", "SegmentationObject"):
        (folder / kind).mkdir()
        for name, labels in truth.items():
            Image.fromarray(COLOURS[labels]).save(folder / kind / f"{name}.png")
    rows = [f"{n}:{','.join(map(str, c))}::" for n, c in zip(NAMES, COLOURS, strict=True)]
    (folder / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *rows]))
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/val.txt").write_text("photof\n")


def camvid(folder: Path, truth: Truth) -> None:
    for split, part in {"train": _parts(truth)["train"], "val": _parts(truth)["valid"]}.items():
        _images(folder / split, list(part))
        write_folder(folder / f"{split}annot", {f"{n}.png": png_of(m) for n, m in part.items()})


def images_and_labels_of_parts(folder: Path, truth: Truth) -> None:
    for split, part in {"train": _parts(truth)["train"], "val": _parts(truth)["valid"]}.items():
        _images(folder / "images" / split, list(part))
        write_folder(folder / "labels" / split, {f"{n}.png": png_of(m) for n, m in part.items()})


LAYOUTS: dict[Callable[[Path, Truth], None], tuple[str, bool]] = {
    roboflow_coco: ("coco", True),
    cvat_coco: ("coco", False),
    coco_of_parts: ("coco", True),
    labelme: ("labelme", False),
    labelme_of_parts: ("labelme", True),
    index_masks: ("index", False),
    roboflow_masks: ("index", True),
    cvat_masks: ("colour", True),
    camvid: ("index", True),
    images_and_labels_of_parts: ("index", True),
}


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_layouts(tmp_path: Path, truth: Truth, write: Callable[[Path, Truth], None]) -> None:
    write(tmp_path / "theirs", truth)
    form, has_val = LAYOUTS[write]
    filled, notes = recognised(tmp_path / "theirs")
    assert filled.form == form and notes
    report = custom(tmp_path, **vars(filled))
    classes = [name for name, *_ in report.classes]
    if write in (camvid, images_and_labels_of_parts):  # which name no classes
        assert classes == ["class_0", "class_1", "class_2"]
        classes = list(NAMES)
    assert sorted(classes) == sorted(NAMES)
    if has_val:
        assert report.splits["val"] == ["photof"]
    assert sorted(report.splits["train"] + report.splits["val"]) == list(truth)
    for name, labels in truth.items():
        made = np.array([NAMES.index(one) for one in classes])[label_map(tmp_path, name)]
        np.testing.assert_array_equal(made, labels)


def test_masks_of_0_and_255_are_two_classes(tmp_path: Path, truth: Truth) -> None:
    _images(tmp_path / "theirs", list(truth))
    masks = {f"{n}_mask.png": png_of((m == 1) * np.uint8(255)) for n, m in truth.items()}
    write_folder(tmp_path / "theirs", masks)
    report = told(tmp_path / "theirs")
    assert [name for name, *_ in report.classes] == ["background", "object"]
    for name, labels in truth.items():
        np.testing.assert_array_equal(label_map(tmp_path, name), labels == 1)


def test_parts_with_equal_names(tmp_path: Path, truth: Truth) -> None:
    for split in ("train", "val"):
        _images(tmp_path / f"theirs/images/{split}", ["a"])
        write_folder(tmp_path / f"theirs/masks/{split}", {"a.png": png_of(truth["photoa"])})
    assert told(tmp_path / "theirs").splits == {"train": ["train/a"], "val": ["val/a"]}


def test_folders_that_cannot_be_told(tmp_path: Path, truth: Truth) -> None:
    def tell(folder: Path, form: str = "auto") -> CustomOptions:
        return recognised(folder, form=form)[0]

    with raises_user_error("not-found", "gone"):
        tell(tmp_path / "gone")
    _images(tmp_path / "pictures", list(truth))
    with raises_user_error("empty", "pictures"):
        tell(tmp_path / "pictures")
    labelme(tmp_path / "both", truth)
    write_folder(tmp_path / "both/masks", {f"{n}.png": png_of(m) for n, m in truth.items()})
    with raises_user_error("dataset", "both"):
        tell(tmp_path / "both")
    (tmp_path / "both/zz_val.json").write_text("{}")  # no labels, and no part of them
    assert tell(tmp_path / "both", "labelme").sources == (tmp_path / "both",)
    assert tell(tmp_path / "both", "index").sources == (tmp_path / "both/masks",)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)).save(
        tmp_path / "pictures/photoa_mask.png"
    )
    with raises_user_error("label", "photoa_mask.png"):
        tell(tmp_path / "pictures")
    with raises_user_error("argument", "--format"):
        recognise_options(CustomOptions("mine", "auto", (tmp_path, tmp_path)), tmp_path, 1)


CLASS_MASKS = {
    "class, name": (("sky", "road"), "masks/{c}/{n}.png", "images/{n}.jpg"),
    "name, class": (("sky", "road"), "masks/{n}/{c}.png", "images/{n}.jpg"),
    "among the images": (("sky", "road"), "labels/{c}/{n}.png", "{n}.jpg"),
    "a single class": (("road",), "masks/{c}/{n}.png", "images/{n}.jpg"),
    "parts": (("sky", "road"), "{s}/masks/{c}/{n}.png", "{s}/images/{n}.jpg"),
}


@pytest.mark.parametrize("layout", CLASS_MASKS)
def test_one_mask_a_class(tmp_path: Path, layout: str) -> None:
    """Also of images that are named as a part is."""
    classes, mask, image = CLASS_MASKS[layout]
    rng = np.random.default_rng(0)
    truth = {}
    for n, name in enumerate(("train_0001", "val_0002", "photoc", "photod", "photoe")):
        truth[name] = rng.random((len(classes), 6, 8)) < 0.5
        split = "valid" if n == 4 else "train"
        path = tmp_path / "theirs" / image.format(n=name, s=split)
        write_folder(path.parent, {path.name: jpeg(n)})
        for label, plane in zip(classes, truth[name], strict=True):
            path = tmp_path / "theirs" / mask.format(n=name, c=label, s=split)
            write_folder(path.parent, {path.name: png_of(plane * np.uint8(255))})
    filled, notes = recognised(tmp_path / "theirs", multilabel=True)
    assert filled.form == "masks" and notes
    report = custom(tmp_path, **vars(filled))
    names = [name for name, *_ in report.classes]
    assert names == sorted(classes)
    if layout == "parts":
        assert report.splits["val"] == ["photoe"]
    assert sorted(report.splits["train"] + report.splits["val"]) == sorted(truth)
    for name, planes in truth.items():
        bits = sum(planes[classes.index(one)] << n for n, one in enumerate(names))
        np.testing.assert_array_equal(label_map(tmp_path, name), bits)
    if len(classes) > 1:  # or else they are masks of 0 and 1
        with raises_user_error("argument-missing", "--format masks"):
            told(tmp_path / "theirs")
