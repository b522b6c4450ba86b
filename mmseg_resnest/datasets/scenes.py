# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The built-in demo data set: street and room scenes drawn from a seed, with exact labels."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mmseg.datasets import BaseSegDataset
from tqdm import tqdm

from ..errors import UserError
from ..io.json_files import read_json
from ..registry import DATASETS
from . import scene_painter
from .layout import FolderCheck

# Raise when the painter changes what it paints: folders written before are then not mistaken
# for today's.
VERSION = 1
SPLITS = ("training", "validation")
_SHORT = {"training": "train", "validation": "val"}

# Name, colour in overlays and whether it is "stuff" (a surface, not a countable thing), in the
# order of the labels 1..12.
_CLASSES: tuple[tuple[str, tuple[int, int, int], bool], ...] = (
    ("sky", (112, 172, 232), True),
    ("building", (150, 84, 74), True),
    ("road", (98, 90, 122), True),
    ("sidewalk", (222, 122, 202), True),
    ("vegetation", (82, 152, 72), True),
    ("wall", (228, 202, 152), True),
    ("floor", (170, 120, 80), True),
    ("furniture", (242, 150, 60), False),
    ("car", (40, 72, 192), False),
    ("person", (222, 40, 72), False),
    ("lamp", (252, 222, 60), False),
    ("sign", (40, 192, 192), False),
)
_INDEX_FILE = f"objectInfo{len(_CLASSES)}.txt"


def draw_scene(
    seed: int, index: int, split: str = "training"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draws one scene; the same arguments give the same bytes on every machine.

    Args:
        seed: Of the data set, 0 to 2**64 - 1.
        index: Of the scene in its split, from 0.
        split: ``'training'`` or ``'validation'``; the splits never share a scene.

    Returns:
        RGB image (128, 160, 3) and labels (128, 160), both uint8. Label 0 is unlabelled (thin
        seams between regions, objects of no class), 1..12 are ``ScenesDataset``'s classes.

    Raises:
        UserError: If an argument is out of range.
    """
    if split not in SPLITS:
        raise UserError("argument", "", f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if not 0 <= seed < 2**64:
        raise UserError("argument", "", f"seed must be from 0 to 2**64 - 1, not {seed}")
    if not 0 <= index < 2**32:
        raise UserError("argument", "", f"index must be from 0 to 2**32 - 1, not {index}")
    stream = SPLITS.index(split) << 32 | index
    return scene_painter.paint_scene(scene_painter.Dice(seed, stream))


def png_bytes(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encodes a picture as a PNG whose bytes do not depend on the zlib at hand.

    Compressors differ between zlib builds, so the data goes into *stored* blocks (RFC 1951,
    section 3.2.4), which leave no choice.

    Args:
        pixels: Grey (H, W) or RGB (H, W, 3), uint8.

    Returns:
        The PNG file.
    """
    height, width = pixels.shape[:2]
    colour_type = 0 if pixels.ndim == 2 else 2
    rows = np.zeros((height, 1 + pixels[0].size), dtype=np.uint8)  # filter type 0, then the row
    rows[:, 1:] = pixels.reshape(height, -1)
    raw = rows.tobytes()
    limit = 65535
    blocks = [raw[start : start + limit] for start in range(0, len(raw), limit)]
    stream = b"\x78\x01"
    for number, block in enumerate(blocks, start=1):
        last = number == len(blocks)
        stream += struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block
    stream += struct.pack(">I", zlib.adler32(raw))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    )


def write_scenes(
    root: str | os.PathLike[str],
    num_train: int = 400,
    num_val: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Writes the data set, once, in the ADE20K layout.

    ``images/{training,validation}/*.png``, ``annotations/{training,validation}/*.png``,
    ``objectInfo12.txt`` (classes and how frequent they are) and ``scenes.json`` (the arguments).
    Everything is written to a folder beside ``root`` and renamed at the end, so ``root`` is
    complete or absent whenever the process dies. Processes that call this at the same time wait
    for the first one; a call that finds its scenes there changes nothing.

    Args:
        root: The folder to write.
        num_train: Scenes to train on.
        num_val: Scenes to validate on.
        seed: What the scenes are drawn from, 0 to 2**64 - 1.
        progress: Whether to show a progress bar on a terminal.

    Returns:
        ``root``.

    Raises:
        UserError: If an argument is out of range, ``root`` holds something else, or it cannot be
            written.
    """
    for name, count in (("num_train", num_train), ("num_val", num_val)):
        if not 1 <= count < 2**32:
            raise UserError("argument", "", f"{name} must be at least 1, not {count}")
    if not 0 <= seed < 2**64:
        raise UserError("argument", "", f"seed must be from 0 to 2**64 - 1, not {seed}")
    root = Path(root)
    facts = {
        "data_set": "scenes",
        "version": VERSION,
        "seed": seed,
        "num_train": num_train,
        "num_val": num_val,
        "width": scene_painter.WIDTH,
        "height": scene_painter.HEIGHT,
    }
    if _is_written(root, facts):
        return root
    # A link to a folder on another disk: the rename has to happen there.
    target = root.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent) as alone:
            if _is_written(root, facts):  # while this process waited
                return root
            prefix = f".{target.name}.partial-"
            if alone:  # whatever lies there was left by a process that died
                for stale in target.parent.iterdir():
                    if re.fullmatch(re.escape(prefix) + "[0-9a-f]{12}", stale.name):
                        shutil.rmtree(stale, ignore_errors=True)
            partial = target.parent / f"{prefix}{secrets.token_hex(6)}"
            try:
                _write(partial, facts, progress)
                try:
                    partial.rename(target)
                except OSError:
                    if not _is_written(root, facts):  # else another process was faster
                        raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            "argument",
            f"cannot write the scenes to {root}",
            f"{error.strerror or error}; choose a folder that can be written",
        ) from error
    return root


def _is_written(root: Path, facts: dict[str, Any]) -> bool:
    """Whether the scenes are there; an error if something else is."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    advice = "remove it or choose another folder"
    try:
        found = read_json(root / "scenes.json", str(root / "scenes.json"))
    except UserError:
        raise UserError(
            "dataset", "", f"{root} exists but does not hold the demo scenes; {advice}"
        ) from None
    if found != facts:
        changed = [
            f"{key} {found.get(key) if isinstance(found, dict) else None} instead of {value}"
            for key, value in facts.items()
            if not isinstance(found, dict) or found.get(key) != value
        ]
        raise UserError(
            "dataset", "", f"{root} holds other scenes ({', '.join(changed)}); {advice}"
        )
    for split, key in zip(SPLITS, ("num_train", "num_val"), strict=True):
        for kind in ("images", "annotations"):
            folder = root / kind / split
            count = len(list(folder.glob("*.png")))
            if count != facts[key]:
                raise UserError(
                    "corrupt",
                    f"{folder} holds {count} files instead of {facts[key]}",
                    f"{root} is damaged; remove it to have it written again",
                )
    return True


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Waits until no other process is in here; yields False where folders cannot be locked."""
    descriptor = None
    try:
        try:
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except (ImportError, OSError):  # not a POSIX system, or a network file system
            yield False
        else:
            yield True
    finally:
        if descriptor is not None:
            os.close(descriptor)  # also gives the lock back


def _write(root: Path, facts: dict[str, Any], progress: bool) -> None:
    """Writes everything into a new folder."""
    pixels = np.zeros(len(_CLASSES) + 1, dtype=np.int64)
    scenes = {split: np.zeros(len(_CLASSES) + 1, dtype=np.int64) for split in SPLITS}
    total = facts["num_train"] + facts["num_val"]
    # disable=None: no bar in a log file.
    with tqdm(total=total, desc="drawing scenes", disable=None if progress else True) as bar:
        for split, key in zip(SPLITS, ("num_train", "num_val"), strict=True):
            for kind in ("images", "annotations"):
                (root / kind / split).mkdir(parents=True)
            for index in range(facts[key]):
                image, label = draw_scene(facts["seed"], index, split)
                name = f"scenes_{_SHORT[split]}_{index + 1:08d}.png"
                (root / "images" / split / name).write_bytes(png_bytes(image))
                (root / "annotations" / split / name).write_bytes(png_bytes(label))
                count = np.bincount(label.reshape(-1), minlength=len(pixels))
                pixels += count
                scenes[split] += count > 0
                bar.update()
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for label_value, (name, _, stuff) in enumerate(_CLASSES, start=1):
        share = int(pixels[label_value]) * 10000 // int(pixels.sum())
        lines.append(
            f"{label_value}\t0.{share:04d}\t{scenes['training'][label_value]}"
            f"\t{scenes['validation'][label_value]}\t{int(stuff)}\t{name}"
        )
    (root / _INDEX_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    text = json.dumps(facts, indent=2) + "\n"
    (root / "scenes.json").write_text(text, encoding="utf-8", newline="\n")


@DATASETS.register_module()
class ScenesDataset(FolderCheck, BaseSegDataset):
    """The built-in demo scenes, as ``write_scenes`` wrote them.

    Twelve classes of street and room; colour alone hardly separates them. In the files 0 is
    unlabelled and 1..12 are the classes, as in ADE20K.

    Args:
        img_suffix: Suffix of images.
        seg_map_suffix: Suffix of label maps.
        reduce_zero_label: Whether label 0 is ignored and the others move down by one.
        **kwargs: As ``mmseg.datasets.BaseSegDataset``.

    Raises:
        UserError: If a folder is missing or empty, or an image has no label map.
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
