# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Planted label errors, and how many of them are found: precision at 20.

    python benchmarks/label_errors.py                              (drawn scenes, a stand-in model)
    python benchmarks/label_errors.py work_dirs/RUN                (a run's validation images)
    MMSEG_RESNEST_DATA=DIR python benchmarks/label_errors.py CONFIG CHECKPOINT --split train

In a share of the images one connected region of a class, drawn at random, is given another class,
also drawn; nothing is written into the data set. The images are scored as mmseg-resnest
label-errors scores them. Of the first 20 of a ranking, precision at 20 is the share that is
planted; where fewer are planted, of as many first ones as there are. Errors that the data set had
before count as wrong. The stand-in blurs the true labels, confuses whole patches and is right in
about 90 % of the pixels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from harness import arguments
from numpy.typing import NDArray
from tqdm import tqdm

from mmseg_resnest.datasets.scenes import ScenesDataset, draw_scene
from mmseg_resnest.evaluation.label_quality import confident_thresholds, find_regions, gather

LEAST = 40  # pixels of a planted region, or a thousandth of the image
#: Labels (H, W), the bands of their scores, and what is ignored.
Scored = tuple[NDArray[np.integer], Any, int]


def stand_in(
    labels: NDArray, classes: int, rng: np.random.Generator, sharp: float = 6, noise: float = 1.2
) -> NDArray[np.float32]:
    """Probabilities (C, H, W) of a model that does not exist; labels from C on are unknown."""
    truth = np.eye(classes, dtype=np.float32)[np.where(labels < classes, labels, 0)]
    truth[labels >= classes] = 1 / classes
    size = labels.shape
    patches = rng.normal(size=(size[0] // 12 + 2, size[1] // 12 + 2, classes)).astype("f4")
    patches = cv2.resize(patches, size[::-1], interpolation=cv2.INTER_CUBIC)
    speckles = cv2.GaussianBlur(rng.normal(size=(*size, classes)).astype("f4"), (0, 0), 1.0)
    logits = sharp * cv2.GaussianBlur(truth, (0, 0), 2) + noise * (patches + speckles)
    chances = np.exp(logits - logits.max(2, keepdims=True))
    return (chances / chances.sum(2, keepdims=True)).transpose(2, 0, 1)


def plant(
    labels: NDArray[np.integer], classes: int, rng: np.random.Generator
) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    """Labels of which one region has another class, and where that is; nowhere in tiny regions."""
    least = max(LEAST, labels.size // 1000)
    regions = []
    for k in range(classes):
        mask = (labels == k).astype(np.uint8)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        regions += [(parts == i, k) for i in range(1, count) if stats[i, 4] >= least]
    if not regions:
        return labels, np.zeros(labels.shape, bool)
    region, old = regions[rng.integers(len(regions))]
    other = rng.choice([k for k in range(classes) if k != old])
    return np.where(region, other, labels), region


def scenes(number: int, rng: np.random.Generator) -> Iterator[Scored]:
    """Drawn scenes at half their size, with the scores of the stand-in."""
    classes = len(ScenesDataset.METAINFO["classes"])
    for index in range(number):
        labels = draw_scene(0, index, "validation")[1].astype(np.int64)[::2, ::2] - 1
        labels[labels < 0] = 255
        yield labels, [(0, stand_in(labels, classes, rng))], 255


def of_run(words: Sequence[str], split: str, device: str | None) -> tuple[int, int, Any]:
    """Number of images and of classes, and the images of a run with its model's scores."""
    from mmseg_resnest import load_segmentor
    from mmseg_resnest.inference.label_errors.samples import labelled_samples

    model = load_segmentor(*words, device=device)
    samples, ignored = labelled_samples(model.cfg, split)
    model.fold()

    def images() -> Iterator[Scored]:
        for sample in samples:
            labels = sample.read_labels(len(model.classes), ignored)
            yield labels, model.score_bands(model.reader.load_sample(sample.info)), ignored

    return len(samples), len(model.classes), images()


def measure(
    number: int, classes: int, images: Iterator[Scored], share: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Plant, score and rank."""
    chosen = set(rng.choice(number, max(1, round(share * number)), replace=False).tolist())
    kept, where = [], {}
    for index, (labels, bands, ignored) in enumerate(tqdm(images, total=number, disable=None)):
        if index in chosen:
            labels, region = plant(labels, classes, rng)
            if region.any():
                where[index] = region
        kept.append(gather(labels, bands, classes, ignored))
    right = 1 - sum(len(one.given) for one in kept) / sum(one.pixels.sum() for one in kept)
    limits = confident_thresholds(
        np.sum([one.confidence for one in kept], axis=0),
        np.sum([one.pixels for one in kept], axis=0),
    )
    found = [
        (region, i) for i, one in enumerate(kept) for region in find_regions(one, limits, 16)[0]
    ]
    found.sort(key=lambda pair: pair[0].score)
    first = min(20, len(where))
    hits = 0
    for region, index in found[:first]:
        x, y, width, height = region.box
        if index in where:
            inside = where[index][y : y + height, x : x + width][region.mask]
            hits += bool(inside.mean() > 0.5)
    by_region = list(dict.fromkeys(index for _, index in found))[:first]
    by_softmin = sorted(range(number), key=lambda i: np.nan_to_num(kept[i].quality, nan=2))[:first]
    return {
        "images": number,
        "planted": len(where),
        "at": first,
        "equal to the labels": round(float(right), 4),
        "regions": hits / first,
        "images by their worst region": len(where.keys() & set(by_region)) / first,
        "images by the soft minimum": len(where.keys() & set(by_softmin)) / first,
    }


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("model", nargs="*", metavar="MODEL", help="a run, or CONFIG CHECKPOINT")
    parser.add_argument("--split", choices=["train", "val"], default="val")
    parser.add_argument("--share", type=float, default=0.1, help="of the images (default: 0.1)")
    parser.add_argument("--images", type=int, default=200, help="of the stand-in (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    args = parser.parse_args(argv)
    if len(args.model) > 2 or not 0 < args.share <= 1:
        parser.error("give a run, or a config and its checkpoint, and a share in (0, 1]")
    rng = np.random.default_rng(args.seed)
    if args.model:
        number, classes, images = of_run(args.model, args.split, args.device)
    else:
        number, classes = args.images, len(ScenesDataset.METAINFO["classes"])
        images = scenes(number, np.random.default_rng(args.seed + 1))
    print(json.dumps(measure(number, classes, images, args.share, rng), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
