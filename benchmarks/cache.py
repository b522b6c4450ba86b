# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How long a data set's images and label maps take to load, from their files and from the cache.

    python benchmarks/cache.py data/cityscapes

The folder is a prepared data set with its cache (tools/prepare_data.py DATASET --cache). One core;
the files are in the page cache, so this is the time to decode, not the disk's. `whole` reads every
pixel of the cached array, `crop` a random 512x1024 part of it, as training does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from mmseg_resnest.datasets import LoadAnnotations, LoadImageFromFile
from mmseg_resnest.datasets.cache import FOLDER, SUFFIX, read_entry
from mmseg_resnest.registry import TRANSFORMS

CROP = (512, 1024)


def milliseconds(load: Callable[[Path], np.ndarray], files: list[Path], repeats: int) -> float:
    """Median time for one file."""
    times = []
    for _ in range(repeats):
        for file in files:
            start = time.perf_counter()
            load(file)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def image(transform: Any) -> Callable[[Path], np.ndarray]:
    return lambda file: transform.transform(dict(img_path=str(file)))["img"]


def label(transform: Any) -> Callable[[Path], np.ndarray]:
    def load(file: Path) -> np.ndarray:
        results = dict(seg_map_path=str(file), reduce_zero_label=False, seg_fields=[])
        return transform.transform(results)["gt_seg_map"]

    return load


def whole(load: Callable[[Path], np.ndarray]) -> Callable[[Path], np.ndarray]:
    return lambda file: np.array(load(file))


def crop(load: Callable[[Path], np.ndarray]) -> Callable[[Path], np.ndarray]:
    def part(file: Path) -> np.ndarray:
        pixels = load(file)
        height, width = (min(have, want) for have, want in zip(pixels.shape, CROP, strict=False))
        top = np.random.randint(pixels.shape[0] - height + 1)
        left = np.random.randint(pixels.shape[1] - width + 1)
        return pixels[top : top + height, left : left + width].copy()

    return part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a prepared data set with its cache")
    parser.add_argument("--files", type=int, default=50, help="of each kind (default: 50)")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    entries = sorted((args.folder / FOLDER).rglob(f"*{SUFFIX}"))
    kinds: dict[str, list[Path]] = {"image": [], "label map": []}
    for entry in entries:
        relative = entry.relative_to(args.folder / FOLDER).as_posix().removesuffix(SUFFIX)
        found = args.folder / relative
        pixels = read_entry(entry, found)
        if pixels is None:
            sys.exit(f"{found}: has changed since the cache was written; write it again")
        kinds["image" if pixels.ndim == 3 else "label map"].append(found)
    print(
        f"{os.cpu_count()} cores, one used; torch {torch.__version__}, OpenCV {cv2.__version__}\n"
    )
    print("| | files | file, MB | cache, MB | file, ms | cache whole, ms | cache crop, ms |")
    print("|---|---|---|---|---|---|---|")
    loaders = {
        "image": (image(TRANSFORMS.get("mmcv.LoadImageFromFile")()), image(LoadImageFromFile())),
        "label map": (
            label(TRANSFORMS.get("mmseg.LoadAnnotations")()),
            label(LoadAnnotations()),
        ),
    }
    for kind, files in kinds.items():
        if not files:
            continue
        chosen = files[:: max(1, len(files) // args.files)][: args.files]
        from_file, cached = loaders[kind]
        for load in (from_file, whole(cached)):  # into memory
            milliseconds(load, chosen, 1)
        size = statistics.mean(file.stat().st_size for file in chosen) / 1e6
        held = statistics.mean(
            (args.folder / FOLDER / f"{file.relative_to(args.folder)}{SUFFIX}").stat().st_size
            for file in chosen
        )
        times = [
            milliseconds(load, chosen, args.repeats)
            for load in (from_file, whole(cached), crop(cached))
        ]
        shown = " | ".join(f"{value:.2f}" for value in times)
        print(f"| {kind} | {len(chosen)} | {size:.2f} | {held / 1e6:.2f} | {shown} |")


if __name__ == "__main__":
    main()
