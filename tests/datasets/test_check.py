# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The check of data sets: each fault is planted, found and named, and no clean file is blamed."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from check_sets import TRAIN, check, clean, config, data, first, put_palettes
from mmengine.registry import DefaultScope
from PIL import Image
from png_files import png_file
from user_errors import raises_user_error

from mmseg_resnest.datasets import CamVidDataset
from mmseg_resnest.datasets.check import (
    RULES,
    check_data,
    check_start,
    guard_labels,
    numbers_of_classes,
    print_report,
    write_fix_list,
    write_report,
)
from mmseg_resnest.datasets.check.report import DataReport
from mmseg_resnest.datasets.check.sample import MAX_PIXELS, SampleFacts
from mmseg_resnest.registry import DATASETS

__all__ = ["clean", "data"]  # fixtures


def test_clean_data_are_clean(clean: Path) -> None:
    report = check(config(clean))
    assert report.problems == []
    assert report.as_dict()["clean"] is True
    # Counted independently, pixel by pixel.
    table = report.class_table()["train"]
    counts = np.zeros(256, np.int64)
    for file in (clean / "trainannot").iterdir():
        values, number = np.unique(np.array(Image.open(file)), return_counts=True)
        counts[values] += number
    assert table["pixels"].tolist() == counts[:11].tolist()
    assert table["ignored"] == counts[11]
    assert sum(report.sizes("train").values()) == TRAIN


# --- the faults of files --------------------------------------------------------------------

Plant = Callable[[Path], "Path | str"]


def reencoded(folder: str, change: Callable[[Image.Image], Image.Image], kind: str, **kw: Any):
    def plant(root: Path) -> Path:
        path = first(root, folder)
        with Image.open(path) as image:
            image.load()
            changed = change(image)
        changed.save(path, kind, **kw)
        return path

    return plant


def contents(folder: str, change: Callable[[bytes], bytes]) -> Plant:
    def plant(root: Path) -> Path:
        path = first(root, folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return plant


def relabelled(change: Callable[[np.ndarray], Any]) -> Plant:
    def plant(root: Path) -> Path:
        path = first(root, "trainannot")
        labels = np.array(Image.open(path))
        changed = change(labels)
        Image.fromarray(labels if changed is None else changed).save(path)
        return path

    return plant


def bomb(height: int) -> bytes:
    return png_file(20000, height, bytes(1000), colour=2)


def missing_label(root: Path) -> Path:
    path = first(root, "trainannot")
    path.unlink()
    return path


def dangling_label(root: Path) -> Path:
    path = missing_label(root)
    path.symlink_to("nowhere.png")
    return path


def missing_image(root: Path) -> Path:
    label = first(root, "trainannot")
    next((root / "train").glob(f"{label.stem}.*")).unlink()
    return label


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damaged_jpeg(data: bytes) -> bytes:
    damaged = bytearray(data)
    middle = len(data) // 2
    for k in range(middle, middle + 40):
        damaged[k] = (damaged[k] * 7 + 3) % 255
    # A marker where none may be: libjpeg reads on, and says so.
    damaged[middle + 50 : middle + 52] = b"\xff\xd0"
    return bytes(damaged)


def one_other_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


def folder_for_image(root: Path) -> Path:
    path = first(root, "train")
    path.unlink()
    path.mkdir()
    return path


def out_of_range(labels: np.ndarray) -> None:
    labels[5, 5:8] = 77


def palette_in_other_order(image: Image.Image) -> Image.Image:
    palette = np.roll(np.array(CamVidDataset.METAINFO["palette"], np.uint8), 1, axis=0)
    image.putpalette(palette.tobytes())
    return image


def as_png(change: Callable[[np.ndarray], Any]) -> Plant:
    def plant(root: Path) -> Path:
        path = first(root, "train")
        image = change(cv2.imread(str(path)))
        path.unlink()
        target = path.with_suffix(".png")
        if isinstance(image, bytes):
            target.write_bytes(image)
        else:
            cv2.imwrite(str(target), image)
        return target

    return plant


def two_pages(folder: str) -> Plant:
    def plant(root: Path) -> Path:
        path = first(root, folder)
        with Image.open(path) as image:
            image.load()
        image.save(path, "TIFF", save_all=True, append_images=[image.copy()])
        return path

    return plant


def exif(orientation: int) -> Plant:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return reencoded("train", lambda i: i, "JPEG", exif=tags, quality=95)


def tiny(root: Path) -> Path:
    reencoded("trainannot", lambda i: i.resize((3, 2), 0), "PNG")(root)
    return reencoded("train", lambda i: i.resize((3, 2)), "JPEG")(root)


def duplicate(root: Path) -> Path:
    image = first(root, "train")
    comment, data = b"another file", image.read_bytes()  # other bytes, the same pixels
    data = data[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + data[2:]
    (root / "train" / "zz.jpg").write_bytes(data)
    shutil.copy(root / "trainannot" / f"{image.stem}.png", root / "trainannot" / "zz.png")
    return root / "train" / "zz.jpg"


def duplicate_with_other_label(root: Path) -> Path:
    duplicate(root)
    path = root / "trainannot" / "zz.png"
    labels = np.array(Image.open(path))
    labels[9, 9] = 3 if labels[9, 9] != 3 else 4
    Image.fromarray(labels).save(path)
    return path


def leaked(root: Path) -> Path:
    image = first(root, "train")
    shutil.copy(image, root / "val" / "zz.jpg")
    shutil.copy(root / "trainannot" / f"{image.stem}.png", root / "valannot" / "zz.png")
    return root / "val" / "zz.jpg"


def renamed(name: bytes) -> Plant:
    def plant(root: Path) -> str:
        image = first(root, "train")
        target = os.fsencode(root / "train") + b"/" + name + b".jpg"
        label = root / "trainannot" / f"{image.stem}.png"
        os.rename(image, target)
        os.rename(label, os.fsencode(root / "trainannot") + b"/" + name + b".png")
        return os.fsdecode(target)

    return plant


def other_suffix(root: Path) -> Path:
    image = first(root, "train")
    (root / "trainannot" / f"{image.stem}.png").unlink()
    return image.rename(image.with_suffix(".jpeg"))


FAULTS: dict[str, tuple[str, Plant, str]] = {
    # what is planted: rule, how, what the problem has to name
    "missing label": ("missing_label", missing_label, ""),
    "dangling link": ("missing_label", dangling_label, "link"),
    "missing image": ("missing_image", missing_image, ""),
    "empty image": ("empty_file", contents("train", lambda b: b""), "image"),
    "empty label": ("empty_file", contents("trainannot", lambda b: b""), "label map"),
    "truncated image": ("broken_file", contents("train", half), "JPEG"),
    "truncated label": ("broken_file", contents("trainannot", half), "PNG"),
    "damaged image": ("broken_file", contents("train", damaged_jpeg), "damaged"),
    "damaged label": ("broken_file", contents("trainannot", one_other_byte), "PNG"),
    "text for an image": ("broken_file", contents("train", lambda b: b"<html>404"), "format"),
    "folder for an image": ("broken_file", folder_for_image, "folder"),
    "other extension": ("wrong_extension", reencoded("train", lambda i: i, "PNG"), ".jpg but"),
    "sizes differ": (
        "size_mismatch",
        reencoded("trainannot", lambda i: i.resize((i.width // 2, i.height // 2), 0), "PNG"),
        "",
    ),
    "label out of range": ("label_out_of_range", relabelled(out_of_range), "77 (3 pixels)"),
    "colour mask": (
        "colour_label", reencoded("trainannot", lambda i: i.convert("RGB"), "PNG"), "3 channels",
    ),
    "JPEG mask": ("jpeg_label", reencoded("trainannot", lambda i: i, "JPEG"), "JPEG"),
    "16-bit mask": ("label_16bit", relabelled(lambda x: x.astype(np.uint16) * 257), "16 bits"),
    "16-bit mask that fits": ("label_16bit", relabelled(lambda x: x.astype(np.uint16)), "fit"),
    "palette in other order": (
        "palette_label", reencoded("trainannot", palette_in_other_order, "PNG"), "colour of class",
    ),
    "grey image": ("grey_image", reencoded("train", lambda i: i.convert("L"), "JPEG"), ""),
    "CMYK image": ("cmyk_image", reencoded("train", lambda i: i.convert("CMYK"), "JPEG"), ""),
    "alpha": ("alpha_image", as_png(lambda x: cv2.cvtColor(x, cv2.COLOR_BGR2BGRA)), ""),
    "16-bit image": ("deep_image", as_png(lambda x: x.astype(np.uint16) * 257), "16 bits"),
    "two pages": ("several_pages", two_pages("train"), "2 pages"),
    "two pages of labels": ("several_pages", two_pages("trainannot"), "2 pages"),
    "rotated by EXIF": ("rotated_image", exif(6), "90 degrees"),
    "upside down by EXIF": ("rotated_image", exif(3), "180 degrees"),
    "bomb": ("absurd_size", as_png(lambda x: bomb(60000)), "20000x60000"),
    "bomb as a label": (
        "absurd_size",
        contents("trainannot", lambda b: bomb(MAX_PIXELS // 20000 + 1)),
        "not decoded",
    ),
    "tiny image": ("absurd_size", tiny, "3x2"),
    "duplicate": ("duplicate_image", duplicate, "the same pixels"),
    "duplicate, other label": ("conflicting_labels", duplicate_with_other_label, ""),
    "leak": ("leaked_image", leaked, "(train)"),
    "undecodable name": ("unreadable_name", renamed(b"caf\xe9"), "UTF-8"),
    "line break in a name": ("unreadable_name", renamed(b"a\nb"), r"'\n'"),
    "other suffix": ("left_out", other_suffix, ".jpg"),
}  # fmt: skip
# A fault may bring others of the same file with it.
COMPANIONS = {
    "conflicting_labels": {"duplicate_image"}, "several_pages": {"wrong_extension"},
}  # fmt: skip
# Rules about a config or a whole split, with tests of their own.
OF_CONFIGS = {"empty_split", "num_classes", "reduce_zero_label", "ignore_index"}
OF_CONFIGS |= {"class_only_val", "class_never", "mixed_sizes", "channels", "values"}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_and_no_clean_file_is_blamed(fault: str, data: Path, tmp_path: Path) -> None:
    rule, plant, named = FAULTS[fault]
    culprit = str(plant(data))
    report = check(config(data))
    found = report.by_rule.get(rule, [])
    assert [p.file for p in found] == [culprit], report.problems
    assert named in found[0].what
    assert found[0].split in ("train", "val")
    others = {p.rule for p in report.problems} - {rule} - COMPANIONS.get(rule, set())
    # A class may be gone with the file that was the only one to hold it.
    assert others <= {"class_never", "class_only_val"}, report.problems
    write_fix_list(report, tmp_path / "fix.txt")
    lines = (tmp_path / "fix.txt").read_bytes().splitlines()
    assert len(lines) == len(report.problems)
    wanted = os.fsencode(culprit).replace(b"\n", b"\\n")
    assert any(line.split(b"\t")[:2] == [rule.encode(), wanted] for line in lines)
    json.dumps(report.as_dict(), ensure_ascii=False).encode("utf-8")


def test_the_table_of_rules_is_tested_and_documented() -> None:
    assert {rule for rule, _, _ in FAULTS.values()} | OF_CONFIGS == set(RULES)
    page = (Path(__file__).parents[2] / "docs" / "check_data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(r.name, r.severity, r.effect, r.remedy) for r in RULES.values()]


def test_faults_together_are_all_found_by_two_processes(data: Path) -> None:
    FAULTS["grey image"][1](data)
    labels = sorted((data / "trainannot").iterdir())
    labels[2].write_bytes(b"")
    labels[3].unlink()
    report = check_data(config(data), workers=2, progress=False)
    files = {rule: [p.file for p in found] for rule, found in report.by_rule.items()}
    assert files["empty_file"] == [str(labels[2])]
    assert files["missing_label"] == [str(labels[3])]
    severities = [problem.severity for problem in report.problems]
    assert severities[0] == "error" and severities[-1] == "warning"


def test_rules_can_be_left_out(data: Path) -> None:
    FAULTS["grey image"][1](data)
    assert check(config(data), ignore=["grey_image"]).problems == []
    with raises_user_error("argument", "--ignore gray"):
        check(config(data), ignore=["gray"])


def test_palette_masks_with_the_right_indices_are_fine(data: Path) -> None:
    put_palettes(data, np.array(CamVidDataset.METAINFO["palette"], np.uint8).tobytes())
    assert check(config(data)).problems == []


def test_a_rotated_image_whose_label_map_fits_is_a_warning(data: Path) -> None:
    path = Path(exif(6)(data))
    assert [p.severity for p in check(config(data)).problems] == ["error"]
    label = data / "trainannot" / f"{path.stem}.png"
    Image.open(label).rotate(270, expand=True).save(label)
    (problem,) = check(config(data)).problems
    assert (problem.rule, problem.severity) == ("rotated_image", "warning")


def test_empty_splits(data: Path) -> None:
    for file in (data / "val").iterdir():
        file.unlink()
    (problem,) = check(config(data)).by_rule["empty_split"]
    assert problem.split == "val"
    listed = config(data)
    (data / "list.txt").write_text("\n", encoding="utf-8")
    listed.train_dataloader.dataset.ann_file = "list.txt"
    assert {p.split for p in check(listed).by_rule["empty_split"]} == {"train", "val"}
    (data / "val").rmdir()
    with raises_user_error("not-found", data / "val"):
        check(config(data))


def test_validation_files_are_checked_once(clean: Path) -> None:
    cfg = config(clean)
    cfg.test_dataloader = cfg.val_dataloader
    report = check(cfg)
    assert report.problems == []
    assert report.same == {"test": "val"}
    cfg.val_dataloader = cfg.train_dataloader
    leaks = check(cfg, splits=["train", "val"]).by_rule["leaked_image"]
    assert len(leaks) == TRAIN
    assert "same file" in leaks[0].what


def test_images_without_labels(data: Path) -> None:
    shutil.rmtree(data / "valannot")
    cfg = config(data)
    cfg.val_dataloader.dataset.data_prefix = {"img_path": "val"}
    assert check(cfg).problems == []
    empty = first(data, "val")
    empty.write_bytes(b"")
    assert [p.file for p in check(cfg).problems] == [str(empty)]


def test_shares_of_classes_that_overlap_are_of_the_labelled_pixels(tmp_path: Path) -> None:
    """An image of 100 pixels, of which 20 are ignored."""
    from mmseg_resnest.evaluation import overlay

    counts = np.zeros(256, np.int64)
    counts[[0, 1, 255]] = 60, 40, 20
    table = np.arange(256, dtype=np.uint8)
    plan = SimpleNamespace(num_classes=2, ignore_index=255, table=table, planes=2)
    part: Any = SimpleNamespace(
        split="train", classes=["car", "wheel"], counts=[counts], plan=plan, samples=[],
        facts=[SampleFacts(size=(10, 10), raw_counts=counts)],
    )  # fmt: skip
    write_report(DataReport([], [part], {}, 1.0, 1), tmp_path / "page.html", "t", overlay)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r"<td class=n>([\d.]+)%</td>", page) == ["75.000", "50.000"]


def test_report_and_page(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmseg_resnest.evaluation import overlay

    relabelled(out_of_range)(data)
    report = check(config(data))
    print_report(report)
    printed = capsys.readouterr().out
    assert f"train: {TRAIN} images" in printed
    assert "(label_out_of_range): 1" in printed
    assert "1 errors, 0 warnings" in printed
    write_report(report, tmp_path / "new" / "page.html", "a <title>", overlay, samples=4)
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    for text in ("a &lt;title&gt;", "Bicyclist", "77 (3 pixels)", "<circle"):
        assert text in page
    pictures = page.split("data:image/jpeg;base64,")[1:]
    assert len(pictures) == 4
    picture = Image.open(io.BytesIO(base64.b64decode(pictures[0].split("'")[0])))
    assert picture.width > picture.height  # image and overlay side by side
    assert "http" not in page  # nothing is fetched
    assert os.listdir(tmp_path / "new") == ["page.html"]


# --- training -------------------------------------------------------------------------------


def test_start_takes_clean_data_and_refuses_the_rest(data: Path) -> None:
    check_start(config(data))
    culprit = relabelled(out_of_range)(data)
    with raises_user_error("dataset", culprit) as caught:
        check_start(config(data))
    (problem,) = check(config(data)).problems
    assert problem.message in caught.value.text
    # A warning does not keep anyone from training.
    shutil.copy(first(data, "trainannot", 0), culprit)
    FAULTS["grey image"][1](data)
    check_start(config(data))


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("missing label", "not-found"),
        ("empty image", "empty"),
        ("truncated image", "image"),
        ("damaged label", "label"),
        ("colour mask", "label"),
        ("label out of range", "label"),
        ("sizes differ", "size-mismatch"),
    ],
)
def test_loading_names_a_broken_file(data: Path, fault: str, code: str) -> None:
    dataset_cfg = config(data).train_dataloader.dataset
    guard_labels(dataset_cfg, numbers_of_classes(dataset_cfg), 255)
    assert dataset_cfg.pipeline[1].num_classes == 11
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):  # as a run sets it
        dataset = DATASETS.build(dataset_cfg)
    assert dataset[1]
    culprit = FAULTS[fault][1](data)
    with raises_user_error(code, culprit):
        dataset[1]
    assert dataset[0]
