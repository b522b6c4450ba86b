# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images of one class each, cut from the label maps of a segmentation: data for classifiers."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..io.atomic import atomic_path
from ..io.text import printable
from ..registry import building
from .check import leaf_datasets
from .layout import check_dataset_folders
from .listing import build_dataset
from .pipelines import step_name

__all__ = ["write_class_crops"]


def write_class_crops(
    cfg: Mapping[str, Any], out: str | os.PathLike[str], size: int = 64, share: float = 0.5
) -> dict[str, tuple[int, int]]:
    """Cut square crops of one class from the training and the validation images of a config.

    Crops lie on a grid of half their size. One is taken where its most frequent class has at least
    ``share`` of its pixels. It becomes ``train/CLASS/IMAGE_ROW_COLUMN.png`` or ``val/...``; where
    images are not 8-bit colour, a ``.npy`` file (size, size, bands). Classes that one of the two
    lacks are left out. Nothing is drawn at random.

    Args:
        cfg: The checked config of a segmentation; its steps that load images and labels are used.
        out: A folder that does not exist; it is complete or absent.
        size: Edge of a crop in pixels.
        share: From 0 to 1.

    Returns:
        For ``train`` and ``val`` the numbers of crops and of classes.

    Raises:
        UserError: The folder exists or cannot be written, an argument is out of range, or no class
            has crops in both.
    """
    target = Path(out)
    if size < 8:
        raise UserError("argument", "--size", f"must be at least 8 pixels, not {size}")
    if not 0 < share <= 1:
        raise UserError("argument", "--share", f"must be above 0 and at most 1, not {share:g}")
    if os.path.lexists(target):
        raise UserError("output-exists", f"--out {target}", "exists; name a new folder")
    for split in ("train", "val"):
        check_dataset_folders(cfg[f"{split}_dataloader"]["dataset"])
    splits = ("train", "val")
    with atomic_path(target, f"--out {target}", "choose another folder") as part:
        counts = {split: _write_split(cfg, split, part / split, size, share) for split in splits}
        both = [name for name in counts["train"] if name in counts["val"]]
        if not both:
            message = (
                f"no class has crops of {size} pixels in both splits; make --size or "
                "--share smaller"
            )
            raise UserError("dataset", "--size", message)
        for split in splits:
            for name in set(counts[split]) - set(both):
                shutil.rmtree(part / split / name)
    return {s: (sum(counts[s][name] for name in both), len(both)) for s in splits}


def _write_split(
    cfg: Mapping[str, Any], split: str, folder: Path, size: int, share: float
) -> dict[str, int]:
    """Write the crops of a split; returns the number of each class that has some."""
    counts: dict[str, int] = {}
    for leaf in leaf_datasets(cfg[f"{split}_dataloader"]["dataset"]):
        steps = [s for s in leaf["pipeline"] if step_name(s).startswith("Load")]
        with building(cfg.get("default_scope", "mmseg_resnest")):
            dataset = build_dataset(copy.deepcopy({**leaf, "pipeline": steps}))
        classes = [_file_name(name) for name in dataset.metainfo["classes"]]
        for index in tqdm(range(len(dataset)), desc=f"cutting {split}", disable=None):
            sample = dataset[index]
            stem = f"{index:06d}_{Path(sample['img_path']).stem}"
            for label, row, column in _places(sample["gt_seg_map"], len(classes), size, share):
                pixels = sample["img"][row : row + size, column : column + size]
                place = folder / classes[label]
                place.mkdir(parents=True, exist_ok=True)
                _save(pixels, place / f"{stem}_{row}_{column}")
                counts[classes[label]] = counts.get(classes[label], 0) + 1
    return counts


def _places(
    labels: np.ndarray[Any, Any], number: int, size: int, share: float
) -> list[tuple[int, int, int]]:
    """Class, first row and first column of each crop."""
    found = []
    for row in range(0, labels.shape[0] - size + 1, max(size // 2, 1)):
        for column in range(0, labels.shape[1] - size + 1, max(size // 2, 1)):
            crop = labels[row : row + size, column : column + size]
            pixels = np.bincount(crop[crop < number].ravel(), minlength=number)
            label = int(pixels.argmax())
            if pixels[label] >= share * size * size:
                found.append((label, row, column))
    return found


def _save(pixels: np.ndarray[Any, Any], path: Path) -> None:
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        path.with_name(f"{path.name}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    else:
        np.save(path.with_name(f"{path.name}.npy"), pixels)


def _file_name(name: str) -> str:
    """The name of a class as that of a folder."""
    return printable(name).replace("/", "-").replace("\\", "-").lstrip(".") or "class"
