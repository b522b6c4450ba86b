# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The built-in demo data set: street and room scenes drawn from a seed, with exact labels."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mmseg.datasets import BaseSegDataset
from PIL import Image
from tqdm import tqdm

from ..io.atomic import atomic_write
from ..registry import DATASETS
from .drawn import check_counts, check_scene, write_once
from .label_map import MapsLabels
from .layout import FolderCheck
from .scene_painter import Dice, paint_scene

# Raise when the painter changes: folders written before are then not mistaken for today's.
VERSION = 2
SPLITS = {"training": "train", "validation": "val"}

# Name, colour in overlays and whether it is a surface ("stuff"), in the order of labels 1..12.
_CLASSES: tuple[tuple[str, tuple[int, int, int], bool], ...] = (
    ("sky", (112, 172, 232), True), ("building", (150, 84, 74), True),
    ("road", (98, 90, 122), True), ("sidewalk", (222, 122, 202), True),
    ("vegetation", (82, 152, 72), True), ("wall", (228, 202, 152), True),
    ("floor", (170, 120, 80), True), ("furniture", (242, 150, 60), False),
    ("car", (40, 72, 192), False), ("person", (222, 40, 72), False),
    ("lamp", (252, 222, 60), False), ("sign", (40, 192, 192), False),
)  # fmt: skip


def draw_scene(
    seed: int, index: int, split: str = "training"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draws one scene; the same arguments give the same pixels on every machine.

    Args:
        seed: Of the data set, 0 to 2**64 - 1.
        index: Of the scene in its split, 0 to 2**32 - 1.
        split: ``'training'`` or ``'validation'``; the splits never share a scene.

    Returns:
        RGB image and labels (128, 160), uint8; 0 is unlabelled, as seams are.
    """
    check_scene(seed, index, split, SPLITS)
    return paint_scene(Dice(seed, list(SPLITS).index(split) << 32 | index))


def write_scenes(
    root: str | os.PathLike[str],
    num_train: int = 400,
    num_val: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Writes the data set, once, in the ADE20K layout, and returns ``root``.

    ``images/{training,validation}/*.png``, ``annotations/{training,validation}/*.png``,
    ``objectInfo12.txt`` (how frequent the classes are) and ``scenes.json`` (the arguments). It is
    written beside ``root`` and renamed at the end, so ``root`` is complete or absent. A call that
    finds its scenes there changes nothing; it waits for another one that is writing them.

    Raises:
        UserError: If an argument is out of range, ``root`` holds something else, or it cannot be
            written.
    """
    facts = {"num_train": num_train, "num_val": num_val, "seed": seed}
    check_counts(facts)
    facts["version"] = VERSION
    pictures = {
        f"*/{split}/*.png": 2 * n for split, n in zip(SPLITS, (num_train, num_val), strict=True)
    }
    write = partial(_write, facts=facts, progress=progress)
    return write_once(root, "scenes", facts, pictures, write)


def _write(root: Path, facts: dict[str, int], progress: bool) -> None:
    """Writes everything into a new folder."""
    pixels = np.zeros(len(_CLASSES) + 1, dtype=np.int64)
    scenes = {split: np.zeros_like(pixels) for split in SPLITS}
    counts = dict(zip(SPLITS, (facts["num_train"], facts["num_val"]), strict=True))
    hidden = None if progress else True  # None: not in a log file
    with tqdm(total=sum(counts.values()), desc="drawing scenes", disable=hidden) as bar:
        for split, count in counts.items():
            for index in range(count):
                image, label = draw_scene(facts["seed"], index, split)
                name = f"{split}/scenes_{SPLITS[split]}_{index + 1:08d}.png"
                for kind, array in (("images", image), ("annotations", label)):
                    (root / kind / split).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(root / kind / name)
                found = np.bincount(label.reshape(-1), minlength=len(pixels))
                pixels += found
                scenes[split] += found > 0
                bar.update()
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for value, (name, _, stuff) in enumerate(_CLASSES, start=1):
        share = pixels[value] * 10000 // pixels.sum()
        in_scenes = "\t".join(str(scenes[split][value]) for split in SPLITS)
        lines.append(f"{value}\t0.{share:04d}\t{in_scenes}\t{int(stuff)}\t{name}")
    atomic_write(root / f"objectInfo{len(_CLASSES)}.txt", "\n".join(lines) + "\n")


@DATASETS.register_module()
class ScenesDataset(FolderCheck, MapsLabels, BaseSegDataset):
    """The demo scenes of ``write_scenes``; in the files 0 is unlabelled and 1..12 the classes.

    ``label_map`` merges classes and leaves some out, see :func:`.merge_classes`.
    """

    METAINFO = dict(
        classes=tuple(name for name, _, _ in _CLASSES),
        palette=[list(colour) for _, colour, _ in _CLASSES],
    )

    def __init__(
        self,
        img_suffix: str = ".png",
        seg_map_suffix: str = ".png",
        reduce_zero_label: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            reduce_zero_label=reduce_zero_label,
            **kwargs,
        )
