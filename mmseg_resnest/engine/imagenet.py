# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Published ImageNet classifiers: loading them, and their top-1 accuracy by the published crop."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..datasets.imagenet import CLASSES, centre_crop, normalised, read_rgb
from ..errors import UserError
from ..io.atomic import atomic_write
from ..io.json_files import read_json
from ..io.processes import cpu_count
from ..models import ARCHITECTURES, ResNeSt
from ..weights import Entry, catalogue, load_backbone
from .hooks.console import progress_bar
from .preflight import check_writable

BATCH = 32
_EVERY = 1000  # images after which a run can continue

_T = TypeVar("_T")
_R = TypeVar("_R")


def check_classifier(entry: Entry) -> None:
    """UserError if an entry of the catalogue is not a ResNeSt's with a published accuracy."""
    if entry.arch not in ARCHITECTURES or "single crop" not in entry.metrics:
        known = catalogue().values()
        names = ", ".join(e.name for e in known if e.arch in ARCHITECTURES and not e.config)
        message = "is a backbone without a published ImageNet accuracy; those that have one: "
        raise UserError("argument", entry.name, message + names)


def crop_of(entry: Entry) -> Callable[[Image.Image], Image.Image]:
    """The published test crop of a classifier of the catalogue; 224 pixels where it states none."""
    size = int(entry.metrics["single crop"].get("crop", 224))
    fast = entry.arch.startswith("resnest50_fast")
    return lambda image: centre_crop(image, size, entry.layout, bicubic=size >= 320 or fast)


def load_classifier(entry: Entry, device: torch.device) -> ResNeSt:
    """A published classifier, in evaluation mode; its weights are fetched if need be.

    UserError says that they cannot be had, or are others.
    """
    check_classifier(entry)
    model = ResNeSt(entry.arch, out_indices=(3,), num_classes=CLASSES)
    load_backbone(model, entry.name)
    return model.to(device).eval()


def evaluate_classifier(
    entry: Entry,
    samples: Sequence[tuple[Path, int]],
    device: torch.device,
    progress: str | os.PathLike[str],
    made_from: str,
) -> dict[str, float]:
    """The ``top1`` and ``top5`` of a published classifier in percent, float32, and ``seconds``.

    The file ``progress`` holds how far it is, from which the next call continues, unless
    ``made_from``, the fingerprint of data and weights, is another one.

    Raises:
        UserError: The results cannot be written, the weights cannot be had, or an image cannot be
            read.
    """
    file = Path(progress)
    check_writable(file.parent, "the folder of the results")
    model, crop = load_classifier(entry, device), crop_of(entry)
    state: dict[str, Any] = {
        "made_from": made_from,
        "images": 0,
        "top1": 0,
        "top5": 0,
        "seconds": 0.0,
    }
    if file.exists():
        earlier = read_json(file, str(file))
        if isinstance(earlier, dict) and earlier.get("made_from") == made_from:
            state |= earlier
    start = time.monotonic() - state["seconds"]
    todo = samples[state["images"] :]

    def load(sample: tuple[Path, int]) -> tuple[Tensor, int]:
        return normalised(crop(read_rgb(sample[0]))), sample[1]

    bar = progress_bar(len(samples), state["images"], f"evaluating {entry.name}")
    saved = state["images"]
    with bar, ThreadPoolExecutor(min(8, cpu_count())) as pool, torch.no_grad():
        loaded = _ahead(pool, load, todo, 2 * BATCH)
        while batch := list(itertools.islice(loaded, BATCH)):
            images = torch.stack([image for image, _ in batch])
            labels = torch.tensor([label for _, label in batch])
            found = model(images.to(device)).topk(5).indices.cpu() == labels[:, None]
            state["top1"] += int(found[:, 0].sum())
            state["top5"] += int(found.sum())
            state["images"] += len(batch)
            state["seconds"] = time.monotonic() - start
            bar.update(len(batch))
            if state["images"] - saved >= _EVERY or state["images"] == len(samples):
                saved = state["images"]
                atomic_write(file, json.dumps(state) + "\n")
    scores = {name: 100 * state[name] / len(samples) for name in ("top1", "top5")}
    return {**scores, "seconds": state["seconds"]}


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[_T], _R], jobs: Iterable[_T], number: int
) -> Iterator[_R]:
    """Results in order; as many of them as ``number`` are made before they are asked for."""
    todo, waiting = iter(jobs), deque[Future[_R]]()
    while True:
        for job in itertools.islice(todo, number - len(waiting)):
            waiting.append(pool.submit(function, job))
        if not waiting:
            return
        yield waiting.popleft().result()
