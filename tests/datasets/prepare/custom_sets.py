# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Small data sets of one's own, prepared with ``prepare_custom``."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from tiny_archives import jpeg, labels_of, png_of, write_folder

from mmseg_resnest.datasets.prepare import CustomOptions, CustomReport, recognise_options
from mmseg_resnest.datasets.prepare.custom import prepare_custom
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.registry import DATASETS

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@functools.cache
def base(name: str = "fcn_resnest14_scenes") -> Config:
    return load_config(CONFIGS / f"{name}.py")


def custom(
    folder: Path,
    root: str = "data",
    inherits: str = "fcn_resnest14_scenes",
    epochs: int = 2,
    force: bool = False,
    **options: Any,
) -> CustomReport:
    """Prepares ``mine`` below ``folder / root``; every image is a group of its own."""
    filled: dict[str, Any] = {"name": "mine", "group_pattern": "(.*)", **options}
    return prepare_custom(
        CustomOptions(**filled), folder / root, folder / "configs", base(inherits), epochs,
        jobs=1, force=force,
    )  # fmt: skip


def recognised(folder: Path, **options: Any) -> tuple[CustomOptions, tuple[str, ...]]:
    """The options of a folder whose form is told from its files, and the notes on them."""
    given = {"form": "auto", "group_pattern": "(.*)", **options}
    return recognise_options(CustomOptions("mine", sources=(folder,), **given), folder.parent, 1)


def told(folder: Path, **options: Any) -> CustomReport:
    """Prepares a folder whose form is told from its files; the notes are of both."""
    filled, notes = recognised(folder, **options)
    report = custom(folder.parent, **vars(filled))
    report.notes += notes
    return report


def label_map(folder: Path, name: str) -> np.ndarray:
    """A label map that ``custom`` made."""
    return np.asarray(Image.open(folder / f"data/mine/annotations/{name}.png"))


def masks(folder: Path, form: str = "index") -> dict[str, Any]:
    """The options for masks in ``labels``, images in ``images`` and ``classes.txt``."""
    return dict(
        form=form, sources=(folder / "labels",), images=folder / "images",
        classes=folder / "classes.txt",
    )  # fmt: skip


def write_masks(folder: Path, names: Sequence[str], suffix: str = ".jpg") -> dict[str, Any]:
    """Writes images and index masks of three classes; returns their options."""
    for n, name in enumerate(names):
        write_folder(folder / "images", {f"{name}{suffix}": jpeg(n)})
        write_folder(folder / "labels", {f"{name}.png": png_of(labels_of(n, 3))})
    (folder / "classes.txt").write_text("a\nb\nc\n")
    return masks(folder)


def write_labelme(folder: Path, labels: Sequence[Any], **first: Any) -> dict[str, Any]:
    """Writes two LabelMe files, a column of each label; ``first`` goes into the first of them."""
    shapes = [
        dict(label=label, points=[[n, 0], [n + 1, 0], [n + 1, 6], [n, 6]])
        for n, label in enumerate(labels)
    ]
    for n, (name, change) in enumerate((("x", first), ("y", {}))):
        data = dict(shapes=shapes, imagePath=f"{name}.jpg", imageData=None) | change
        files = {f"{name}.jpg": jpeg(n), f"{name}.json": json.dumps(data).encode()}
        write_folder(folder / "lm", files)
    return dict(form="labelme", sources=(folder / "lm",))


def build(config: Config, split: str = "train") -> Any:
    """The data set of a config, built as a run builds it."""
    with DefaultScope.overwrite_default_scope("mmseg_resnest"):
        return DATASETS.build(config[f"{split}_dataloader"].dataset)
