# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A drawn detection data set in COCO's layout: shapes on noise, with exact boxes and masks."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools.mask import encode
from tqdm import tqdm

from ..errors import UserError
from ..io.atomic import atomic_write
from .drawn import check_counts, check_scene, write_once
from .scene_painter import Dice

# Raise when the painter changes: folders written before are then not mistaken for today's.
VERSION = 1
HEIGHT, WIDTH = 128, 160
SPLITS = ("train2017", "val2017")
SHAPES = ("disc", "square", "triangle", "cross")
#: Corners of the shapes but for the disc, on a circle of radius 1, in 1000ths.
_CORNERS = {
    "square": ((707, 707), (-707, 707), (-707, -707), (707, -707)),
    "triangle": ((0, -1000), (866, 500), (-866, 500)),
    "cross": (
        *((316, 316), (316, 949), (-316, 949), (-316, 316), (-949, 316), (-949, -316)),
        *((-316, -316), (-316, -949), (316, -949), (316, -316), (949, -316), (949, 316)),
    ),
}
Mask = npt.NDArray[np.bool_]


def draw_shapes(
    seed: int, index: int, split: str = SPLITS[0]
) -> tuple[npt.NDArray[np.uint8], list[tuple[int, Mask]]]:
    """Draw one image; the same arguments give the same pixels on every machine.

    Args:
        seed: Of the data set, 0 to 2**64 - 1.
        index: Of the image in its split, 0 to 2**32 - 1.
        split: One of :data:`SPLITS`, which never share an image.

    Returns:
        RGB image (128, 160, 3), uint8, and one to five pairs of an index into :data:`SHAPES` and
        what is seen of the shape, (128, 160), bool: at least two thirds of it.
    """
    check_scene(seed, index, split, SPLITS)
    dice = Dice(seed, SPLITS.index(split) << 32 | index)
    image = np.empty((HEIGHT, WIDTH, 3), dtype=np.int32)
    image[:] = [dice.roll(20, 235) for _ in range(3)]
    image += (dice.noise(HEIGHT, WIDTH, 24) * dice.roll(20, 90) >> 7)[..., None]
    found: list[tuple[int, Mask]] = []
    whole: list[int] = []
    wanted = dice.roll(1, 5)
    for _ in range(40):
        if len(found) == wanted:
            break
        kind, mask = _shape(dice)
        colour = [dice.roll(0, 255) for _ in range(3)]
        rest = [seen & ~mask for _, seen in found]
        hides = any(3 * left.sum() < 2 * area for left, area in zip(rest, whole, strict=True))
        flat = np.abs(image[mask].mean(axis=0) - colour).sum() < 90
        if hides or flat:
            continue
        found = [(other, left) for (other, _), left in zip(found, rest, strict=True)]
        found.append((kind, mask))
        whole.append(int(mask.sum()))
        image[mask] = colour + (dice.noise(HEIGHT, WIDTH)[mask] * 12 >> 7)[:, None]
    image += dice.noise(HEIGHT, WIDTH * 3).reshape(image.shape) * dice.roll(4, 16) >> 7
    return np.clip(image, 0, 255).astype(np.uint8), found


def _shape(dice: Dice) -> tuple[int, Mask]:
    """A shape of random kind, size, place and rotation, within the image."""
    kind, radius = dice.roll(0, len(SHAPES) - 1), dice.roll(9, 30)
    x, y = dice.roll(radius, WIDTH - 1 - radius), dice.roll(radius, HEIGHT - 1 - radius)
    canvas = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    a, b = dice.pick(((1000, 0), (966, 259), (866, 500), (966, -259), (866, -500)))
    if SHAPES[kind] == "disc":
        cv2.circle(canvas, (x, y), radius, 1, thickness=-1)
    else:
        turned = [
            (x + (a * u - b * v) * radius // 10**6, y + (b * u + a * v) * radius // 10**6)
            for u, v in _CORNERS[SHAPES[kind]]
        ]
        cv2.fillPoly(canvas, [np.array(turned, dtype=np.int32)], (1,))
    return kind, canvas > 0


def write_shapes(
    root: str | os.PathLike[str],
    num_train: int = 400,
    num_val: int = 100,
    seed: int = 0,
    names: Sequence[str] = SHAPES,
    progress: bool = True,
) -> Path:
    """Write the data set, once, in COCO's layout, and return ``root``.

    ``{train,val}2017/*.png``, ``annotations/instances_{train,val}2017.json`` and ``shapes.json``
    (the arguments). ``names`` are those of the four categories. The folder is complete or absent,
    see :func:`.drawn.write_once`.

    Raises:
        UserError: If an argument is out of range, ``root`` holds something else, or it cannot be
            written.
    """
    numbers = {"num_train": num_train, "num_val": num_val, "seed": seed}
    check_counts(numbers)
    if len(set(names)) != len(SHAPES):
        raise UserError("argument", "names", f"must be {len(SHAPES)} different names")
    facts = {**numbers, "names": list(names), "version": VERSION}
    pictures = {f"{s}/*.png": n for s, n in zip(SPLITS, (num_train, num_val), strict=True)}
    write = partial(_write, facts=facts, progress=progress)
    return write_once(root, "shapes", facts, pictures, write)


def _write(root: Path, facts: dict[str, Any], progress: bool) -> None:
    """Write everything into a new folder."""
    counts = dict(zip(SPLITS, (facts["num_train"], facts["num_val"]), strict=True))
    categories = [{"id": i, "name": name} for i, name in enumerate(facts["names"], start=1)]
    hidden = None if progress else True  # None: not in a log file
    with tqdm(total=sum(counts.values()), desc="drawing shapes", disable=hidden) as bar:
        for split, count in counts.items():
            images: list[dict[str, Any]] = []
            objects: list[dict[str, Any]] = []
            (root / split).mkdir(parents=True)
            for index in range(count):
                image, found = draw_shapes(facts["seed"], index, split)
                name = f"{index + 1:012d}.png"
                Image.fromarray(image).save(root / split / name)
                size = {"height": HEIGHT, "width": WIDTH}
                images.append({"id": index + 1, "file_name": name, **size})
                for kind, mask in found:
                    numbers = {"id": len(objects) + 1, "image_id": index + 1}
                    objects.append({**numbers, "category_id": kind + 1, **_annotation(mask)})
                bar.update()
            data = {"images": images, "annotations": objects, "categories": categories}
            (root / "annotations").mkdir(exist_ok=True)
            atomic_write(root / "annotations" / f"instances_{split}.json", json.dumps(data))


def _annotation(mask: Mask) -> dict[str, Any]:
    """COCO's box, area and run lengths of a mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    (top, bottom), (left, right) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    rle = encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "bbox": [left, top, right - left + 1, bottom - top + 1],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    }
