# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Lists of names, as people and editors write them, in every data set that takes one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from user_errors import raises_user_error

from mmseg_resnest.datasets import build_dataset
from mmseg_resnest.datasets.check.parts import build_part
from mmseg_resnest.registry import building

NAMES = ["a", "b 1", "deep/c", "#d", "e.v2", "f.png"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        for folder in ("images", "labels"):
            file = tmp_path / folder / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(file)
    return tmp_path


# What a list of images may look like; {root} is the data set's folder.
WRITTEN: dict[str, tuple[str | bytes, list[str]]] = {
    "plain": ("a\nb 1\ndeep/c\n", ["a", "b 1", "deep/c"]),
    "no last line end": ("a\ndeep/c", ["a", "deep/c"]),
    "suffixes": ("a.png\nb 1.png\ndeep/c.PNG\ne.v2.png\n", ["a", "b 1", "deep/c", "e.v2"]),
    "a name that ends as a suffix": ("f.png\n", ["f.png"]),
    "the same with its suffix": ("f.png.png\n", ["f.png"]),
    "Windows": (b"\xef\xbb\xbfa\r\ndeep\\c.png\r\n\r\n", ["a", "deep/c"]),
    "old Mac": ("a\rdeep/c\r", ["a", "deep/c"]),
    "Windows PowerShell": ("a\r\nb 1.png\r\n".encode("utf-16"), ["a", "b 1"]),
    "spaces and blank lines": ("\n  a \n\t\n b 1.png\t\n\n", ["a", "b 1"]),
    "dots": ("./a\n.\\deep\\c\n./b 1.png\n", ["a", "b 1", "deep/c"]),
    "absolute": ("{root}/images/a.png\n{root}/images/deep/c\n", ["a", "deep/c"]),
    "from the data root": ("images/a.png\nimages\\deep\\c.png\n", ["a", "deep/c"]),
    "comments": ("# the best\na\n#d\n # b 1\n", ["#d", "a"]),
    "twice": ("a\na.png\ndeep/c\n", ["a", "a", "deep/c"]),
}
# Wrong lists, and the line that is named.
WRONG: dict[str, tuple[str | bytes, int]] = {
    "no such image": ("a\nz\ny\n", 2),
    "two columns": ("images/a.png labels/a.png\n", 1),
    "of another folder": ("a\n\n../labels/a.png\n", 3),
    "a folder": ("deep\n", 1),
    "a way round": ("../images/a\n", 1),
    "outside": ("/etc/hostname\n", 1),
    "commas": ("a,deep/c\n", 1),
}
KINDS = {
    "CustomDataset": {"classes": ["x", "y"]},
    "ScenesDataset": None,  # ours, listed as the stack does
    "BaseSegDataset": {"classes": ["x", "y"]},
    "ADE20KDataset": None,
    "ConcatDataset": {"classes": ["x", "y"]},
}


def write_list(root: Path, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.replace("{root}", str(root)).encode()
    (root / "list.txt").write_bytes(data)


def config(root: Path, kind: str) -> dict[str, Any]:
    leaf: dict[str, Any] = dict(
        type=kind, data_root=str(root), ann_file="list.txt", pipeline=[],
        data_prefix=dict(img_path="images", seg_map_path="labels"), img_suffix=".png",
    )  # fmt: skip
    if KINDS[kind] is not None:
        leaf["metainfo"] = KINDS[kind]
    if kind != "ConcatDataset":
        return leaf
    return dict(type=kind, datasets=[{**leaf, "type": "BaseSegDataset"}])


def names_of(root: Path, dataset: Any) -> list[str]:
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    found = []
    for info in infos:
        name = os.path.relpath(info["img_path"], root / "images").removesuffix(".png")
        assert os.path.samefile(info["seg_map_path"], root / "labels" / f"{name}.png")
        found.append(name)
    return sorted(found)


@pytest.mark.parametrize("kind", KINDS)
def test_lists(root: Path, kind: str) -> None:
    with building("mmseg_resnest"):
        for what, (text, names) in WRITTEN.items():
            write_list(root, text)
            assert names_of(root, build_dataset(config(root, kind))) == names, what
        for what, (text, line) in WRONG.items():
            write_list(root, text)
            with raises_user_error("dataset", f"list.txt, line {line}") as error:
                build_dataset(config(root, kind))
            assert "lists" in error.value.message, what


def test_hidden_files_are_no_samples(root: Path) -> None:
    """macOS leaves one beside each file that it copies, and Jupyter a folder of copies."""
    for folder in ("images", "labels"):
        (root / folder / "._a.png").write_bytes(b"\0\5\x16\7")
        (root / folder / ".ipynb_checkpoints").mkdir()
        shutil.copy(root / folder / "a.png", root / folder / ".ipynb_checkpoints/a-copy.png")
    cfg = config(root, "CustomDataset") | {"ann_file": ""}
    with building("mmseg_resnest"):
        assert names_of(root, build_dataset(cfg)) == sorted(NAMES)
    _, problems = build_part(Config(dict(train_dataloader=dict(dataset=cfg))), cfg, "train")
    assert not problems


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"\n \n", "empty"), (b"# nothing\n", "empty"), (b"a\n\xff\xfe\n", "unreadable")],
)
def test_lists_that_name_nothing(root: Path, data: bytes, code: str) -> None:
    (root / "list.txt").write_bytes(data)
    with building("mmseg_resnest"), raises_user_error(code, "list.txt"):
        build_dataset(config(root, "CustomDataset"))
