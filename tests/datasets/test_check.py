# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The check of data sets: each fault is planted, found and named, and no clean file is blamed."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from mmseg_resnest.datasets.check import (
    KINDS,
    DataReport,
    check_data,
    check_start,
    print_report,
    write_fix_list,
    write_report,
)
from mmseg_resnest.datasets.check.files import MAX_PIXELS
from mmseg_resnest.datasets.scene_painter import Dice, paint_scene
from mmseg_resnest.errors import UserError

# Raw labels of the sets below: 0 is a class, VOID is ignored through a label map.
CLASSES = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree"]
CLASSES += ["SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"]
TRAIN, VAL = 6, 3


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine samples in CamVid's layout: real ones where there are some, painted ones otherwise."""
    root = tmp_path_factory.mktemp("clean")
    source = Path(os.environ.get("MMSEG_RESNEST_DATA", "data")) / "camvid"
    for split, count in (("train", TRAIN), ("val", VAL)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir()
        if source.is_dir():
            # Far apart: neighbours of a video may be equal.
            files = sorted((source / split).iterdir())[::30][:count]
            for file in files:
                shutil.copy(file, root / split)
                shutil.copy(source / f"{split}annot" / f"{file.stem}.png", root / f"{split}annot")
        else:
            for i in range(count):
                image, labels = paint_scene(Dice(0, i + 100 * (split == "val")))
                Image.fromarray(image).save(root / split / f"{i}.jpg", quality=95)
                # Painted labels have 0 = unlabelled, 1..12; here 11 is void.
                labels = np.where(labels == 0, 11, np.minimum(labels - 1, 10)).astype(np.uint8)
                Image.fromarray(labels).save(root / f"{split}annot" / f"{i}.png")
    for folder in root.iterdir():
        for file in folder.iterdir():
            file.chmod(0o644)
    # Every class occurs in train: one row of an image holds them all.
    path = min((root / "trainannot").iterdir())
    labels = np.array(Image.open(path))
    labels[0, :11] = np.arange(11)
    Image.fromarray(labels).save(path)
    return root


@pytest.fixture
def data(tmp_path: Path, clean: Path) -> Path:
    """A copy to plant a fault in."""
    return Path(shutil.copytree(clean, tmp_path / "data"))


def config(root: Path, **changes: Any) -> Config:
    """CamVid's layout with a head of 11 classes."""

    def loader(split: str) -> dict[str, Any]:
        return {
            "batch_size": 1,
            "dataset": {
                "type": "CamVidDataset",
                "data_root": str(root),
                "data_prefix": {"img_path": split, "seg_map_path": f"{split}annot"},
                "pipeline": [
                    {"type": "LoadImageFromFile"},
                    {"type": "LoadAnnotations"},
                    {"type": "PackSegInputs"},
                ],
            },
        }

    cfg = Config(
        {
            "default_scope": "mmseg_resnest",
            "train_dataloader": loader("train"),
            "val_dataloader": loader("val"),
            "val_evaluator": {"type": "SegmentationMetric"},
            "model": {"decode_head": {"type": "FCNHead", "num_classes": 11}},
        }
    )
    cfg.merge_from_dict(changes)
    return cfg


def check(cfg: Config, **options: Any) -> DataReport:
    return check_data(cfg, workers=1, progress=False, **options)


def test_clean_data_are_clean(clean: Path) -> None:
    report = check(config(clean))
    assert report.problems == []
    assert report.as_dict()["clean"] is True
    # Counted apart from it, pixel by pixel.
    table = report.class_table()["train"]
    counts = np.zeros(256, np.int64)
    for file in (clean / "trainannot").iterdir():
        values, number = np.unique(np.array(Image.open(file)), return_counts=True)
        counts[values] += number
    assert table["pixels"].tolist() == counts[:11].tolist()
    assert table["ignored"] == counts[11]
    assert sum(report.sizes("train").values()) == TRAIN


# ------------------------------------------------------------------------------------------------
# The fault matrix

Plant = Callable[[Path], str]


def first(root: Path, folder: str, index: int = 1) -> Path:
    return sorted((root / folder).iterdir())[index]


def reencode(
    path: Path, change: Callable[[Image.Image], Image.Image], kind: str, **kw: Any
) -> Path:
    with Image.open(path) as image:
        image.load()
        changed = change(image)
    changed.save(path, kind, **kw)
    return path


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def missing_label(root: Path) -> str:
    path = first(root, "trainannot")
    path.unlink()
    return str(path)


def dangling_label(root: Path) -> str:
    path = first(root, "trainannot")
    path.unlink()
    path.symlink_to("nowhere.png")
    return str(path)


def missing_image(root: Path) -> str:
    label = first(root, "trainannot")
    next((root / "train").glob(f"{label.stem}.*")).unlink()
    return str(label)


def empty_image(root: Path) -> str:
    path = first(root, "train")
    path.write_bytes(b"")
    return str(path)


def empty_label(root: Path) -> str:
    path = first(root, "trainannot")
    path.write_bytes(b"")
    return str(path)


def truncated(folder: str) -> Plant:
    def plant(root: Path) -> str:
        path = first(root, folder)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return str(path)

    return plant


def damaged_jpeg(root: Path) -> str:
    path = first(root, "train")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    for k in range(middle, middle + 40):
        data[k] = (data[k] * 7 + 3) % 255
    # A marker where none may be: libjpeg reads on, and says so.
    data[middle + 50 : middle + 52] = b"\xff\xd0"
    path.write_bytes(bytes(data))
    return str(path)


def damaged_label(root: Path) -> str:
    path = first(root, "trainannot")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))
    return str(path)


def text_for_image(root: Path) -> str:
    path = first(root, "train")
    path.write_text("<html>404 Not Found</html>", encoding="utf-8")
    return str(path)


def folder_for_image(root: Path) -> str:
    path = first(root, "train")
    path.unlink()
    path.mkdir()
    return str(path)


def lying_extension(root: Path) -> str:
    path = first(root, "train")
    reencode(path, lambda i: i, "PNG")
    return str(path)


def sizes_differ(root: Path) -> str:
    path = first(root, "trainannot")
    reencode(path, lambda i: i.resize((i.width // 2, i.height // 2), 0), "PNG")
    return str(path)


def out_of_range(root: Path) -> str:
    path = first(root, "trainannot")
    labels = np.array(Image.open(path))
    labels[5, 5:8] = 77
    Image.fromarray(labels).save(path)
    return str(path)


def colour_mask(root: Path) -> str:
    path = first(root, "trainannot")
    reencode(path, lambda i: i.convert("RGB"), "PNG")
    return str(path)


def jpeg_mask(root: Path) -> str:
    path = first(root, "trainannot")
    reencode(path, lambda i: i, "JPEG")
    return str(path)


def deep_mask(root: Path) -> str:
    path = first(root, "trainannot")
    labels = np.array(Image.open(path)).astype(np.uint16) * 257
    Image.fromarray(labels).save(path)
    return str(path)


def deep_mask_that_fits(root: Path) -> str:
    path = first(root, "trainannot")
    Image.fromarray(np.array(Image.open(path)).astype(np.uint16)).save(path)
    return str(path)


def palette_in_other_order(root: Path) -> str:
    from mmseg_resnest.datasets import CamVidDataset

    path = first(root, "trainannot")
    palette = CamVidDataset.METAINFO["palette"]
    turned = np.roll(np.array(palette, np.uint8), 1, axis=0)
    image = Image.open(path)
    image.load()
    image.putpalette(turned.tobytes())
    image.save(path)
    return str(path)


def grey(root: Path) -> str:
    return str(reencode(first(root, "train"), lambda i: i.convert("L"), "JPEG"))


def cmyk(root: Path) -> str:
    return str(reencode(first(root, "train"), lambda i: i.convert("CMYK"), "JPEG"))


def with_alpha(root: Path) -> str:
    path = first(root, "train")
    image = Image.open(path).convert("RGBA")
    path.unlink()
    image.save(path.with_suffix(".png"))
    return str(path.with_suffix(".png"))


def sixteen_bits(root: Path) -> str:
    import cv2

    path = first(root, "train")
    image = cv2.imread(str(path)).astype(np.uint16) * 257
    path.unlink()
    cv2.imwrite(str(path.with_suffix(".png")), image)
    return str(path.with_suffix(".png"))


def rotated(orientation: int) -> Plant:
    def plant(root: Path) -> str:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return str(reencode(first(root, "train"), lambda i: i, "JPEG", exif=exif, quality=95))

    return plant


def bomb_image(root: Path) -> str:
    path = first(root, "train")
    path.unlink()
    path.with_suffix(".png").write_bytes(png_that_claims(60000, 60000))
    return str(path.with_suffix(".png"))


def bomb_label(root: Path) -> str:
    path = first(root, "trainannot")
    path.write_bytes(png_that_claims(20000, MAX_PIXELS // 20000 + 1))
    return str(path)


def tiny(root: Path) -> str:
    reencode(first(root, "trainannot"), lambda i: i.resize((3, 2), 0), "PNG")
    return str(reencode(first(root, "train"), lambda i: i.resize((3, 2)), "JPEG"))


def duplicate(root: Path) -> str:
    image = first(root, "train")
    with Image.open(image) as pixels:  # other bytes, the same pixels as training decodes them
        pixels.load()
        comment = b"another file"
    data = image.read_bytes()
    data = data[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + data[2:]
    (root / "train" / "zz.jpg").write_bytes(data)
    shutil.copy(root / "trainannot" / f"{image.stem}.png", root / "trainannot" / "zz.png")
    return str(root / "train" / "zz.jpg")


def duplicate_with_other_label(root: Path) -> str:
    duplicate(root)
    path = root / "trainannot" / "zz.png"
    labels = np.array(Image.open(path))
    labels[9, 9] = 3 if labels[9, 9] != 3 else 4
    Image.fromarray(labels).save(path)
    return str(path)


def leaked(root: Path) -> str:
    image = first(root, "train")
    shutil.copy(image, root / "val" / "zz.jpg")
    shutil.copy(root / "trainannot" / f"{image.stem}.png", root / "valannot" / "zz.png")
    return str(root / "val" / "zz.jpg")


def undecodable_name(root: Path) -> str:
    image = first(root, "train")
    name = b"caf\xe9"
    target = os.fsencode(root / "train") + b"/" + name + b".jpg"
    label = root / "trainannot" / f"{image.stem}.png"
    os.rename(image, target)
    os.rename(label, os.fsencode(root / "trainannot") + b"/" + name + b".png")
    return os.fsdecode(target)


def newline_in_name(root: Path) -> str:
    image = first(root, "train")
    image.rename(root / "train" / "a\nb.jpg")
    (root / "trainannot" / f"{image.stem}.png").rename(root / "trainannot" / "a\nb.png")
    return str(root / "train" / "a\nb.jpg")


def other_suffix(root: Path) -> str:
    image = first(root, "train")
    (root / "trainannot" / f"{image.stem}.png").unlink()
    image.rename(image.with_suffix(".jpeg"))
    return str(image.with_suffix(".jpeg"))


FAULTS: dict[str, tuple[str, Plant, str]] = {
    # what is planted: kind, how, words of the message
    "missing label": ("missing_label", missing_label, "is missing"),
    "link to nothing": ("missing_label", dangling_label, "link to nothing"),
    "missing image": ("missing_image", missing_image, "has no image"),
    "empty image": ("empty_file", empty_image, "empty file"),
    "empty label": ("empty_file", empty_label, "empty file"),
    "truncated image": ("broken_file", truncated("train"), "truncated or damaged JPEG"),
    "truncated label": ("broken_file", truncated("trainannot"), "truncated or damaged PNG"),
    "damaged image": ("broken_file", damaged_jpeg, "damaged"),
    "damaged label": ("broken_file", damaged_label, "truncated or damaged PNG"),
    "text for an image": ("broken_file", text_for_image, "no image in a known format"),
    "folder for an image": ("broken_file", folder_for_image, "it is no file"),
    "extension that lies": ("wrong_extension", lying_extension, "is named .jpg but holds PNG"),
    "sizes differ": ("size_mismatch", sizes_differ, "its image"),
    "label out of range": ("label_out_of_range", out_of_range, "holds 77 (3 pixels)"),
    "colour mask": ("colour_label", colour_mask, "3 channels"),
    "JPEG mask": ("jpeg_label", jpeg_mask, "is a JPEG"),
    "16-bit mask": ("label_16bit", deep_mask, "lower 8 bits"),
    "16-bit mask that fits": ("label_16bit", deep_mask_that_fits, "fit into 8"),
    "palette in other order": ("palette_label", palette_in_other_order, "has the colour of class"),
    "grey image": ("grey_image", grey, "grey"),
    "CMYK image": ("cmyk_image", cmyk, "CMYK"),
    "alpha": ("alpha_image", with_alpha, "transparency"),
    "16-bit image": ("deep_image", sixteen_bits, "16 bits"),
    "turned by EXIF": ("rotated_image", rotated(6), "turned by 90"),
    "upside down by EXIF": ("rotated_image", rotated(3), "turned by 180"),
    "bomb": ("absurd_size", bomb_image, "claims 60000x60000"),
    "bomb as a label": ("absurd_size", bomb_label, "was not decoded"),
    "tiny image": ("absurd_size", tiny, "only 3x2"),
    "duplicate": ("duplicate_image", duplicate, "shows the same pixels"),
    "duplicate, other label": ("conflicting_labels", duplicate_with_other_label, "differs from"),
    "leak": ("leaked_image", leaked, "(train)"),
    "undecodable name": ("unreadable_name", undecodable_name, "not UTF-8"),
    "line break in a name": ("unreadable_name", newline_in_name, "holds the character"),
    "other suffix": ("left_out", other_suffix, "does not end in"),
}
# A fault may bring others of the same file with it.
COMPANIONS = {"conflicting_labels": {"duplicate_image"}}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_and_no_clean_file_is_blamed(fault: str, data: Path, tmp_path: Path) -> None:
    kind, plant, words = FAULTS[fault]
    culprit = plant(data)
    report = check(config(data))
    found = report.by_kind.get(kind, [])
    assert [p.file for p in found] == [culprit], report.problems
    assert words in found[0].message
    assert found[0].split in ("train", "val")
    assert found[0].effect
    assert found[0].fix
    others = {p.kind for p in report.problems} - {kind} - COMPANIONS.get(kind, set())
    # A class may be gone with the file that was the only one to hold it.
    assert others <= {"class_never", "class_only_val"}, report.problems
    write_fix_list(report, tmp_path / "fix.txt")
    lines = (tmp_path / "fix.txt").read_bytes().splitlines()
    assert len(lines) == len(report.problems)
    wanted = os.fsencode(culprit).replace(b"\n", b"\\n")
    assert any(line.split(b"\t")[:2] == [kind.encode(), wanted] for line in lines)
    json.dumps(report.as_dict(), ensure_ascii=False).encode("utf-8")


def test_faults_together_are_all_found(data: Path) -> None:
    """By two processes, each fault in a file of its own."""
    grey(data)
    labels = sorted((data / "trainannot").iterdir())
    labels[2].write_bytes(b"")
    labels[3].unlink()
    Image.open(labels[4]).convert("RGB").save(labels[4])
    report = check_data(config(data), workers=2, progress=False)
    kinds = {kind: [p.file for p in found] for kind, found in report.by_kind.items()}
    assert kinds["empty_file"] == [str(labels[2])]
    assert kinds["missing_label"] == [str(labels[3])]
    assert kinds["colour_label"] == [str(labels[4])]
    assert len(kinds["grey_image"]) == 1
    assert report.problems[0].severity == "error"
    assert report.problems[-1].severity == "warning"


def test_kinds_can_be_left_out(data: Path) -> None:
    grey(data)
    assert check(config(data), ignore=["grey_image"]).problems == []
    with pytest.raises(UserError, match="no kind of problem gray"):
        check(config(data), ignore=["gray"])


def test_palette_masks_with_the_right_indices_are_fine(data: Path) -> None:
    from mmseg_resnest.datasets import CamVidDataset

    for path in (data / "trainannot").iterdir():
        image = Image.open(path)
        image.load()
        image.putpalette(np.array(CamVidDataset.METAINFO["palette"], np.uint8).tobytes())
        image.save(path)
    assert check(config(data)).problems == []
    # Another decoder, which this config asks for, reads colours from the same files.
    cfg = config(data)
    cfg.train_dataloader.dataset.pipeline[1].imdecode_backend = "cv2"
    found = check(cfg).by_kind["palette_label"]
    assert len(found) == TRAIN
    assert "imdecode_backend" in found[0].fix


def test_a_turned_image_whose_label_map_fits_is_a_warning(data: Path) -> None:
    path = Path(rotated(6)(data))
    assert [p.severity for p in check(config(data)).problems] == ["error"]
    reencode(data / "trainannot" / f"{path.stem}.png", lambda i: i.rotate(270, expand=True), "PNG")
    (problem,) = check(config(data)).problems
    assert (problem.kind, problem.severity) == ("rotated_image", "warning")


def test_empty_splits(data: Path) -> None:
    for file in (data / "val").iterdir():
        file.unlink()
    report = check(config(data))
    (problem,) = report.by_kind["empty_split"]
    assert problem.split == "val"
    listed = config(data)
    (data / "list.txt").write_text("\n", encoding="utf-8")
    listed.train_dataloader.dataset.ann_file = "list.txt"
    assert {p.split for p in check(listed).by_kind["empty_split"]} == {"train", "val"}
    (data / "val").rmdir()
    with pytest.raises(UserError, match="does not exist"):
        check(config(data))


def test_validation_files_are_checked_once(clean: Path) -> None:
    cfg = config(clean)
    cfg.test_dataloader = cfg.val_dataloader
    report = check(cfg)
    assert report.problems == []
    assert report.same == {"test": "val"}
    cfg.val_dataloader = cfg.train_dataloader
    leaks = check(cfg, splits=["train", "val"]).by_kind["leaked_image"]
    assert len(leaks) == TRAIN
    assert "is the same file as" in leaks[0].what


def relabel(root: Path, table: dict[int, int], folders: tuple[str, ...] = ("train", "val")) -> None:
    for folder in folders:
        for path in (root / f"{folder}annot").iterdir():
            labels = np.array(Image.open(path))
            changed = labels.copy()
            for old, new in table.items():
                changed[labels == old] = new
            Image.fromarray(changed).save(path)


def base_config(root: Path, **dataset: Any) -> Config:
    """The same files as a plain data set, without CamVid's label map."""
    cfg = config(root)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        suffix = ".jpg" if any((root / "train").glob("*.jpg")) else ".png"
        loader.dataset.update(
            type="BaseSegDataset",
            img_suffix=suffix,
            metainfo={"classes": CLASSES, "palette": [[i, i, i] for i in range(11)]},
            **dataset,
        )
    return cfg


def kinds_of(cfg: Config) -> set[str]:
    return {p.kind for p in check(cfg).problems if p.severity == "error"}


def test_reduce_zero_label_that_contradicts_the_labels(data: Path) -> None:
    # 0 = unlabelled, 1..11 = classes, read as if 0 were a class
    relabel(data, {**{k: k + 1 for k in range(11)}, 11: 0})
    report = check(base_config(data))
    assert "set reduce_zero_label=True" in report.by_kind["reduce_zero_label"][0].fix
    assert check(base_config(data, reduce_zero_label=True)).problems == []
    # 0 = the first class and 255 ignored, read as if 0 were unlabelled
    relabel(data, {0: 255, **{k + 1: k for k in range(11)}})
    assert check(base_config(data)).problems == []
    problem = check(base_config(data, reduce_zero_label=True)).by_kind["reduce_zero_label"][0]
    assert "set reduce_zero_label=False" in problem.fix
    with pytest.raises(UserError, match="set reduce_zero_label=False"):
        check_start(base_config(data, reduce_zero_label=True))


def test_labels_without_a_zero_that_start_at_one(data: Path) -> None:
    relabel(data, {**{k: k + 1 for k in range(11)}, 11: 255})
    found = check(base_config(data)).by_kind["reduce_zero_label"]
    assert "the labels run from 1 to 11" in found[0].what
    assert "set reduce_zero_label=True" in found[0].fix
    assert check(base_config(data, reduce_zero_label=True)).problems == []


def test_a_needless_reduce_zero_label_without_255(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Either 0 is a class, or the last class occurs in none of these few files: no error.
    relabel(data, {11: 0})
    cfg = base_config(data, reduce_zero_label=True)
    found = check(cfg).by_kind["reduce_zero_label"]
    assert {p.severity for p in found} == {"warning"}
    assert "every label from 0 to 10 occurs and 11 never does" in found[0].what
    check_start(cfg)
    # More files, which the start looks at only where a sample leaves doubts, make it one.
    monkeypatch.setattr("mmseg_resnest.datasets.check.labels._ENOUGH_FILES", 5)
    with pytest.raises(UserError, match=r"in 6 files every label from 0 to 10 occurs"):
        check_start(cfg, files=2)
    monkeypatch.undo()
    path = first(data, "trainannot", 0)
    labels = np.array(Image.open(path))
    labels[-1, -1] = 11  # the last class after all
    Image.fromarray(labels).save(path)
    assert "reduce_zero_label" not in check(cfg, splits=["train"]).by_kind


def test_a_needless_reduce_zero_label_with_two_classes(data: Path) -> None:
    relabel(data, {k: k % 2 for k in range(12)})
    cfg = base_config(data, reduce_zero_label=True)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo = {"classes": ["no", "yes"], "palette": [[0] * 3, [255] * 3]}
    cfg.model.decode_head.num_classes = 2
    found = check(cfg).by_kind["reduce_zero_label"]
    # In so few images to validate on, the second class may be missing rightly.
    assert [(p.split, p.severity) for p in found] == [("train", "error"), ("val", "warning")]
    with pytest.raises(UserError, match="set reduce_zero_label=False"):
        check_start(cfg)
    check_start(cfg, files=1)  # nor does a part of the files tell: five of six


def test_a_config_that_turns_the_data_sets_own_setting_around(data: Path) -> None:
    cfg = base_config(data)
    cfg.train_dataloader.dataset.update(
        type="ADE20KDataset", metainfo=None, img_suffix=".jpg", reduce_zero_label=False
    )
    del cfg.train_dataloader.dataset["metainfo"]
    found = check(cfg, splits=["train"]).by_kind["reduce_zero_label"]
    assert "in the label files of ADE20KDataset 0 is unlabelled" in found[0].what


def test_ignore_index_that_contradicts_the_labels(data: Path) -> None:
    relabel(data, {11: 200})
    problem = check(base_config(data)).by_kind["ignore_index"][0]
    assert "files hold 200" in problem.what
    assert "label_map {200: 255}" in problem.fix
    cfg = base_config(data)
    cfg.model.decode_head.ignore_index = 200
    found = check(cfg).by_kind
    assert "label_out_of_range" not in found
    assert {p.file for p in found["ignore_index"]} == {
        "ignore_index of BaseSegDataset (train)",
        "ignore_index of BaseSegDataset (val)",
        "config key val_evaluator.ignore_index",
    }


def test_ignoring_a_class(clean: Path) -> None:
    cfg = config(clean)
    cfg.model.decode_head.ignore_index = 3
    told = [p.message for p in check(cfg).by_kind["ignore_index"]]
    assert any("which is the class Road" in message for message in told)


def test_black_and_white_masks(data: Path) -> None:
    relabel(data, {k: 255 * (k > 3) for k in range(12)})
    cfg = base_config(data)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo = {"classes": ["no", "yes"], "palette": [[0] * 3, [255] * 3]}
    cfg.model.decode_head.num_classes = 2
    assert "black and white" in check(cfg).by_kind["ignore_index"][0].what


def test_number_of_classes_that_contradicts_the_head(clean: Path) -> None:
    cfg = config(clean)
    cfg.model.decode_head.num_classes = 10
    cfg.model.auxiliary_head = [{"type": "FCNHead", "num_classes": 19}]
    told = {p.file: p.what for p in check(cfg).by_kind["num_classes"]}
    assert told == {
        "config key model.decode_head.num_classes": "is 10, but CamVidDataset has 11 classes",
        "config key model.auxiliary_head.0.num_classes": "is 19, but CamVidDataset has 11 classes",
    }
    with pytest.raises(UserError, match=r"decode_head\.num_classes: is 10"):
        check_start(cfg)


def test_classes_that_do_not_occur(data: Path) -> None:
    relabel(data, {8: 0, 9: 0}, ("train",))
    relabel(data, {9: 0}, ("val",))
    path = first(data, "valannot")
    labels = np.array(Image.open(path))
    labels[0, 0] = 8
    Image.fromarray(labels).save(path)
    found = check(config(data)).by_kind
    assert [p.file for p in found["class_only_val"]] == ["class Car of CamVidDataset"]
    assert [p.file for p in found["class_never"]] == ["class Pedestrian of CamVidDataset"]


def test_custom_classes_are_mapped_as_in_training(clean: Path) -> None:
    """A subset of the classes: the others are ignored by the data set's own label map."""
    cfg = config(clean)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo = {"classes": ["Road", "Sky"]}
    cfg.model.decode_head.num_classes = 2
    report = check(cfg)
    assert report.problems == []
    sky = sum(int((np.array(Image.open(f)) == 0).sum()) for f in (clean / "trainannot").iterdir())
    assert report.class_table()["train"]["pixels"][1] == sky


def test_images_without_labels(data: Path) -> None:
    shutil.rmtree(data / "valannot")
    cfg = config(data)
    cfg.val_dataloader.dataset.data_prefix = {"img_path": "val"}
    assert check(cfg).problems == []
    empty = first(data, "val")
    empty.write_bytes(b"")
    assert [p.file for p in check(cfg).problems] == [str(empty)]


def test_every_kind_is_planted() -> None:
    """The list of kinds and the tests of this file agree."""
    config_level = {
        "empty_split",
        "num_classes",
        "reduce_zero_label",
        "ignore_index",
        "class_only_val",
        "class_never",
    }
    assert {kind for kind, _, _ in FAULTS.values()} | config_level == set(KINDS)


def test_report_and_page(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmseg_resnest.evaluation import overlay

    out_of_range(data)
    report = check(config(data))
    print_report(report)
    said = capsys.readouterr().out
    assert f"train: {TRAIN} images" in said
    assert "labels that are no class (label_out_of_range): 1" in said
    assert "1 errors, 0 warnings" in said
    write_report(report, tmp_path / "new" / "page.html", "a <title>", overlay, samples=4)
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "a &lt;title&gt;" in page
    assert "Bicyclist" in page
    assert "holds 77 (3 pixels)" in page
    assert "<circle" in page
    pictures = page.split("data:image/jpeg;base64,")[1:]
    assert len(pictures) == 4
    import base64

    picture = Image.open(io.BytesIO(base64.b64decode(pictures[0].split("'")[0])))
    assert picture.width > picture.height  # image and overlay side by side
    assert "http" not in page  # nothing is fetched
    assert os.listdir(tmp_path / "new") == ["page.html"]


# ------------------------------------------------------------------------------------------------
# Training


def test_start_takes_clean_data_and_refuses_the_rest(data: Path) -> None:
    check_start(config(data))
    culprit = out_of_range(data)
    with pytest.raises(UserError) as caught:
        check_start(config(data))
    lines = str(caught.value).splitlines()
    assert lines[0] == "the data do not fit:"
    (problem,) = check(config(data)).problems
    assert lines[1] == problem.message
    assert culprit in lines[1]
    # A warning does not keep anyone from training.
    shutil.copy(first(data, "trainannot", 0), culprit)
    grey(data)
    check_start(config(data))


def test_loading_names_a_broken_file(data: Path) -> None:
    from mmseg_resnest.datasets.check import guard_labels, numbers_of_classes
    from mmseg_resnest.registry import DATASETS

    cfg = config(data)
    dataset_cfg = cfg.train_dataloader.dataset
    guard_labels(dataset_cfg, numbers_of_classes(dataset_cfg), 255)
    assert cfg.train_dataloader.dataset.pipeline[1].num_classes == 11
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):  # as a run sets it
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    files = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert dataset[0]
    for index, plant in enumerate((empty_image, colour_mask, out_of_range, sizes_differ), start=1):
        info = files[1]
        kept = {p: Path(p).read_bytes() for p in (info["img_path"], info["seg_map_path"])}
        culprit = plant(data)
        with pytest.raises(UserError) as caught:
            dataset[1]
        assert culprit in str(caught.value), index
        problem = next(p for p in check(config(data)).problems if p.severity == "error")
        assert problem.message in str(caught.value)
        assert "mmseg-resnest check-data" in str(caught.value)
        for path, contents in kept.items():
            Path(path).write_bytes(contents)
    Path(files[1]["img_path"]).unlink()
    with pytest.raises(UserError, match="this image is missing"):
        dataset[1]


def test_loading_is_that_of_the_stack(clean: Path) -> None:
    import mmcv.transforms
    import mmseg.datasets.transforms

    from mmseg_resnest.datasets import LoadAnnotations, LoadImageFromFile

    sample = {
        "img_path": str(first(clean, "train")),
        "seg_map_path": str(first(clean, "trainannot")),
        "label_map": {11: 255},
        "reduce_zero_label": False,
    }
    ours: dict[str, Any] = {**sample, "seg_fields": []}
    theirs: dict[str, Any] = {**sample, "seg_fields": []}
    LoadAnnotations(num_classes=11)(LoadImageFromFile()(ours))
    mmseg.datasets.transforms.LoadAnnotations()(mmcv.transforms.LoadImageFromFile()(theirs))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value)
