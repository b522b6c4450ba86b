# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The training pipeline of one core: from the files to what the model is given.

MMSegmentation's augmentation: random resize from 0.5 to 2, random crop with at most 75% of one
class, mirroring, colour jitter. Images and label maps are those of the data sets where
MMSEG_RESNEST_DATA has some, and made up otherwise; they are in the page cache. All variants draw
the same random numbers. Labels of all samples are compared; an image may differ by 0.5 of 255 on
average, as resize and crop in one step do (docs/performance.md). "OpenCV alone" is an installation
without the extra "fast". From the cache means decoded once by tools/prepare_data.py --cache; the
stack has no cache and decodes. "Decoding alone" is the time of decoding the files, a lower bound.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from harness import Comparison, Work
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from models import training_steps
from PIL import Image

import mmseg_resnest  # noqa: F401
from mmseg_resnest.datasets import decode, merge_steps
from mmseg_resnest.datasets.prepare.build_cache import build_cache
from mmseg_resnest.io.memory import keep_freed_memory

# Scale, crop, size of a made-up image, where the labels' numbers start, folders of the data set.
SETS: dict[str, dict[str, Any]] = {
    "ADE20K": dict(
        scale=(2048, 512), crop=(512, 512), size=(512, 683), reduce=True, classes=151,
        images="ade20k/ADEChallengeData2016/images/validation/*.jpg",
        label=("images/validation", "annotations/validation"), suffix=(".jpg", ".png"),
    ),
    "Cityscapes": dict(
        scale=(2048, 1024), crop=(512, 1024), size=(1024, 2048), reduce=False, classes=19,
        images="cityscapes/leftImg8bit/train/*/*.png",
        label=("leftImg8bit", "gtFine"), suffix=("_leftImg8bit.png", "_gtFine_labelIds.png"),
    ),
}  # fmt: skip
SAMPLES = 12


def _real(settings: dict[str, Any]) -> list[tuple[Path, Path]]:
    """Images and label maps of the data set, four at most."""
    root = Path(os.environ.get("MMSEG_RESNEST_DATA", "data"))
    pairs = []
    for image in sorted(root.glob(settings["images"]))[:4]:
        path = str(image)
        for before, after in (settings["suffix"], settings["label"]):
            path = path.replace(before, after)
        if Path(path).is_file():
            pairs.append((image, Path(path)))
    return pairs


def _pairs(settings: dict[str, Any], folder: Path) -> list[tuple[Path, Path]]:
    """Images and label maps, copied into ``folder`` or made there."""
    pairs = []
    for image, label in _real(settings):
        copies = folder / f"{len(pairs)}{image.suffix}", folder / f"{len(pairs)}_label.png"
        shutil.copyfile(image, copies[0])
        shutil.copyfile(label, copies[1])
        pairs.append(copies)
    if pairs:
        return pairs
    rng = np.random.default_rng(0)
    width, height = settings["size"][::-1]
    for i in range(2):
        coarse = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        photo = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        regions = rng.integers(0, settings["classes"], (16, 20), dtype=np.uint8)
        regions = cv2.resize(regions, (width, height), interpolation=cv2.INTER_NEAREST)
        suffix = settings["suffix"][0][-4:]
        copies = folder / f"{i}{suffix}", folder / f"{i}_label.png"
        Image.fromarray(photo).save(copies[0])
        Image.fromarray(regions).save(copies[1])
        pairs.append(copies)
    return pairs


def _work(case: str, stack: bool, fast: bool = True) -> Work:
    if not stack:
        keep_freed_memory()  # as tools/train.py does, before its workers start
    if not fast:
        decode.decode_rust = None
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    init_default_scope("mmseg_resnest")
    settings = SETS[case.split()[0]]
    folder = tempfile.TemporaryDirectory()
    pairs = _pairs(settings, Path(folder.name))
    if "cache" in case and not stack:
        images, labels = (pair.name for pair in pairs[0])
        patterns = [("image", f"[0-9]{images[1:]}"), ("label", f"[0-9]{labels[1:]}")]
        build_cache(folder.name, patterns, jobs=1)
    steps = training_steps(settings["scale"], settings["crop"])
    if stack:
        mmcv_own = ("LoadImageFromFile", "RandomResize", "RandomFlip")
        for step in steps:
            step["type"] = f"{'mmcv' if step['type'] in mmcv_own else 'mmseg'}.{step['type']}"
    pipeline = Compose(steps if stack else merge_steps(steps))

    compared: dict[str, list[torch.Tensor]] = {"labels": [], "images": [], "sizes": []}

    def work() -> dict[str, torch.Tensor] | None:
        kept = not compared["labels"]  # by the first run, which is not timed
        folder.name  # noqa: B018  (keeps the files)
        np.random.seed(0)
        random.seed(0)
        for i in range(SAMPLES):
            image, label = pairs[i % len(pairs)]
            sample: Any = {
                "img_path": str(image),
                "seg_map_path": str(label),
                "reduce_zero_label": settings["reduce"],
                "label_map": None,
                "seg_fields": [],
            }
            sample = pipeline(sample)
            if kept:
                labels = sample["data_samples"].gt_sem_seg.data
                compared["labels"].append(labels.flatten().to(torch.uint8))
                compared["images"].append(sample["inputs"].flatten())
                compared["sizes"].append(torch.tensor([sample["inputs"].numel()]))
        return {name: torch.cat(parts) for name, parts in compared.items()} if kept else None

    return work


def _decoding(case: str, by_opencv: bool) -> Work:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if not by_opencv:
        keep_freed_memory()
    folder = tempfile.TemporaryDirectory()
    pairs = _pairs(SETS[case.split()[0]], Path(folder.name))

    def work() -> None:
        folder.name  # noqa: B018  (keeps the files)
        for i in range(SAMPLES):
            image, label = (pair.read_bytes() for pair in pairs[i % len(pairs)])
            if by_opencv:
                cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
                cv2.imdecode(np.frombuffer(label, np.uint8), cv2.IMREAD_UNCHANGED)
            else:
                decode.decode_image(image)
                decode.decode_label(label)

    return work


def agree(expected: dict[str, torch.Tensor], result: dict[str, torch.Tensor]) -> float:
    """Share of equal labels; 0 if an image differs by more than what is said of them."""
    difference = (expected["images"].float() - result["images"].float()).abs()
    # Where an image is smaller than the crop its sample is so, too.
    if max(image.mean() for image in difference.split(expected["sizes"].tolist())) > 0.5:
        return 0.0
    return float((expected["labels"] == result["labels"]).double().mean())


def _what(case: str) -> str:
    """What a case's samples are made of."""
    name = case.split()[0]
    count = len(_real(SETS[name]))
    source = f"{count} images of {name}" if count else "2 made-up images"
    return f"{SAMPLES} samples of {source}{', decoded once before' if 'cache' in case else ''}"


CASES = ("ADE20K", "Cityscapes", "Cityscapes from the cache")
COMPARISON = Comparison(
    title="Training pipeline, one core",
    reference="MMSegmentation",
    cases={case: _what(case) for case in CASES},
    images=dict.fromkeys(CASES, SAMPLES),
    variants={
        "MMSegmentation": lambda case: _work(case, True),
        "mmseg-resnest": lambda case: _work(case, False),
        "mmseg-resnest, OpenCV alone": lambda case: _work(case, False, fast=False),
        "decoding alone": lambda case: _decoding(case, False),
        "decoding alone, OpenCV's": lambda case: _decoding(case, True),
    },
    left_out={
        "Cityscapes from the cache": (
            "decoding alone",
            "decoding alone, OpenCV's",
            "mmseg-resnest, OpenCV alone",
        )
    },
    agree=agree,
    least={"mmseg-resnest": {"ADE20K": 2.0, "Cityscapes": 2.0, "Cityscapes from the cache": 6.0}},
    repeats=7,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
