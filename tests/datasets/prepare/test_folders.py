# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What people's own folders hold besides what they should: odd names, marks, loops, shapes."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from custom_sets import build, custom, label_map, masks, write_labelme, write_masks
from png_files import png_file
from tiny_archives import jpeg, labels_of, png_of, write_folder
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare import prepare
from mmseg_resnest.datasets.prepare.ade20k import ADE20K
from mmseg_resnest.engine.config import load_config


def samples_of(config: Path, **options: Any) -> list[dict]:
    """What the config's training and validation load."""
    cfg = load_config(config, **options)
    found = []
    for split in ("train", "val"):
        dataset = build(cfg, split)
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
    report = custom(tmp_path, **write_masks(tmp_path, names, suffix))
    samples = samples_of(report.config)
    assert len(samples) == len(names)
    for sample in samples:
        assert Path(sample["img_path"]).is_file()
        assert Path(sample["seg_map_path"]).is_file()
    assert custom(tmp_path, **masks(tmp_path)).unchanged


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", os.fsdecode(b"caf\xe9")])
def test_names_that_no_list_can_hold(tmp_path: Path, name: str) -> None:
    with raises_user_error("dataset") as error:
        custom(tmp_path, **write_masks(tmp_path, ["x", name]))
    assert str(error.value).isprintable()
    assert not (tmp_path / "data").exists()


def test_relative_paths_and_windows_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_masks(tmp_path, ["d/x", "y", "z"])
    Path("classes.txt").write_bytes("\ufeffa\r\nb\r\nc\r\n".encode())
    Path("val.txt").write_bytes("\ufeffd\\x.jpg\r\n\r\n".encode())
    report = custom(Path(), val_list=Path("val.txt"), **masks(Path()))
    assert [name for name, *_ in report.classes] == ["a", "b", "c"]
    assert report.splits == {"train": ["y", "z"], "val": ["d/x"]}
    for split in Path("data/mine/splits").iterdir():  # as an editor on Windows saves it
        split.write_bytes(b"\xef\xbb\xbf" + split.read_bytes().replace(b"\n", b" \r\n"))
    assert len(samples_of(report.config)) == 3


def test_a_root_that_is_a_file_and_names_that_are_taken(tmp_path: Path) -> None:
    options = write_masks(tmp_path, ["x", "y", "z"])
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
    options = write_masks(tmp_path, ["x", "y", "z"])
    (tmp_path / "data").mkdir(mode=0o555)
    with raises_user_error("not-writable", "mine"):
        custom(tmp_path, **options)


def test_loops_of_links(tmp_path: Path) -> None:
    options = write_masks(tmp_path, ["a/x", "a/y", "z"])
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
        write_folder(tmp_path / "all", {f"{name}.png": png_of(labels_of(n, 255))})
        write_folder(tmp_path / "all", {f"{name}_mask.PNG": png_of(labels_of(n, 3))})
    write_folder(tmp_path / "all", {"Thumbs.db": b"", ".DS_Store": b"", "notes.txt": b""})
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    options = masks(tmp_path) | dict(label_suffix="_mask")
    options |= dict(sources=(tmp_path / "all",), images=tmp_path / "all")
    report = custom(tmp_path, **options)
    assert sorted([*report.splits["train"], *report.splits["val"]]) == ["deep/z", "x", "y"]
    np.testing.assert_array_equal(label_map(tmp_path, "deep/z"), labels_of(2, 3))
    write_folder(tmp_path / "all", {"x_mask.bmp": b""})
    with raises_user_error("dataset", "x_mask.bmp"):
        custom(tmp_path, **options)


def test_masks_of_few_bits_and_of_one_pixel(tmp_path: Path) -> None:
    import cv2

    options = write_masks(tmp_path, ["x", "y", "z", "one"])
    few = labels_of(0, 3)
    for name, bits in (("x", 2), ("y", 4)):
        file = str(tmp_path / f"labels/{name}.png")
        unpacked = np.unpackbits(few[..., None], axis=2)[..., 8 - bits :].reshape(len(few), -1)
        rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in unpacked)
        Path(file).write_bytes(png_file(few.shape[1], few.shape[0], rows, bits))
        assert cv2.imread(file, cv2.IMREAD_UNCHANGED).max() > 2  # decoders spread them
    write_folder(tmp_path / "images", {"one.jpg": jpeg(0, (1, 1))})
    write_folder(tmp_path / "labels", {"one.png": png_of(np.array([[2]], np.uint8))})
    custom(tmp_path, **options)
    for name, expected in (("x", few), ("y", few), ("one", [[2]])):
        np.testing.assert_array_equal(label_map(tmp_path, name), expected)


# ---- LabelMe


BAD_SHAPES: dict[str, dict[str, Any]] = {
    "blank label": dict(label=" "),
    "point": dict(shape_type="point"),
    "unknown kind": dict(shape_type="cuboid"),
    "rectangle of one point": dict(points=[[1, 1]], shape_type="rectangle"),
    "circle without a number": dict(points=[[1, float("nan")], [2, 2]], shape_type="circle"),
    "points of three numbers": dict(points=[[0, 0, 1], [8, 0, 1], [8, 6, 1], [1, 2, 3]]),
    "mask larger than the image": dict(
        shape_type="mask", mask=base64.b64encode(png_of(np.ones((9, 9), np.uint8))).decode()
    ),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_bad_labelme_shapes(tmp_path: Path, name: str) -> None:
    shape = {"label": "b", "points": [[0, 0], [1, 1]], **BAD_SHAPES[name]}
    with raises_user_error("annotation", "x.json"):
        custom(tmp_path, **write_labelme(tmp_path, "ab", shapes=[shape]))


def test_labelme_files_from_another_computer(tmp_path: Path) -> None:
    """Paths of Windows, images in capitals, a mark at the front."""
    options = write_labelme(tmp_path, "ab", imagePath="C:\\photos\\x.jpg")
    (tmp_path / "lm/x.jpg").rename(tmp_path / "lm/x.JPG")
    text = (tmp_path / "lm/y.json").read_text()
    (tmp_path / "lm/y.json").write_bytes(b"\xef\xbb\xbf" + text.replace(",", ",\r\n").encode())
    report = custom(tmp_path, **options)
    for name in "xy":
        np.testing.assert_array_equal(label_map(tmp_path, name), [[0, 1] + [255] * 6] * 6)
    assert len(samples_of(report.config)) == 2
    (tmp_path / "lm/y.jpg").unlink()
    (tmp_path / "lm/y.json").write_text(json.dumps({**json.loads(text), "imageData": "%%%"}))
    with raises_user_error(("annotation", "image"), "y.json"):
        custom(tmp_path, **options)


def test_images_elsewhere_in_the_source(tmp_path: Path) -> None:
    options = write_labelme(tmp_path, "ab", imagePath="..\\imgs\\photo 1.JPG")
    (tmp_path / "lm/imgs").mkdir()
    (tmp_path / "lm/ann").mkdir()
    (tmp_path / "lm/x.json").rename(tmp_path / "lm/ann/x.json")
    (tmp_path / "lm/x.jpg").rename(tmp_path / "lm/imgs/photo 1.JPG")
    (tmp_path / "lm/y.jpg").rename(tmp_path / "lm/imgs/y.jpg")
    (tmp_path / "lm/y.jpg").symlink_to("imgs/y.jpg")
    (tmp_path / "link").symlink_to("lm", target_is_directory=True)  # the source may be a link
    custom(tmp_path, **{**options, "sources": (tmp_path / "link",)})
    for n, name in enumerate(("ann/x", "y")):
        assert (tmp_path / f"data/mine/images/{name}.jpg").read_bytes() == jpeg(n)
