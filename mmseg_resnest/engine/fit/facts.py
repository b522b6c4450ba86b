# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What is known of the images, the labels and the machine before anything is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from ...datasets.prepare import CustomOptions, CustomReport
from ...datasets.prepare.bands import BandStatistics
from ...errors import UserError
from ...io.bit_planes import part_sizes
from ...io.image_header import read_header
from ...io.processes import cpu_count
from ..forecast import free_memory

_MOST_LOOKED_AT = 200  # images whose size is read


@dataclass(frozen=True)
class Facts:
    """What decisions are made from.

    ``width`` and ``height`` are of the median training image, in pixels; the pixels of the classes,
    in the order of the labels, are the labelled ones. ``memory`` is what a training may use, in
    bytes: of the GPU, or else of the machine; None where that is not known. ``gpu`` is its name, or
    empty; ``bands`` are those of other images than photos; ``suffixes`` is how the images' names
    end.
    """

    train_images: int
    val_images: int
    width: int
    height: int
    classes: tuple[str, ...]
    train_pixels: tuple[int, ...]
    val_pixels: tuple[int, ...]
    memory: int | None
    cores: int
    gpu: str = ""
    multilabel: bool = False
    bands: BandStatistics | None = None
    suffixes: tuple[str, ...] = ()
    label_map: Mapping[str, str] = field(default_factory=dict)


def collect_facts(report: CustomReport, options: CustomOptions) -> Facts:
    """Facts of a prepared data set on this machine; the sizes of some label maps are read."""
    names, _, train, val = zip(*report.classes, strict=True)
    labels = [report.folder / "annotations" / f"{name}.png" for name in report.splits["train"]]
    chosen = np.linspace(0, len(labels) - 1, min(len(labels), _MOST_LOOKED_AT)).round()
    headers = [read_header(labels[int(index)], str(labels[int(index)])) for index in chosen]
    sizes = [(one.width, one.height) for one in headers if one is not None]
    width, height = np.median(np.array(sizes), axis=0)
    if options.multilabel:  # several maps may stand side by side in a file
        width /= len(part_sizes(len(names)))
    cuda = torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if cuda else ""
    return Facts(
        train_images=len(labels),
        val_images=len(report.splits["val"]),
        width=int(width),
        height=int(height),
        classes=names,
        train_pixels=train,
        val_pixels=val,
        memory=free_memory(cuda),
        cores=cpu_count(),
        gpu=gpu,
        multilabel=options.multilabel,
        bands=report.bands,
        suffixes=report.suffixes,
        label_map=options.label_map,
    )


def check_facts(facts: Facts, subject: object) -> None:
    """Refuse labels that nothing can be trained on, or that cannot be validated.

    Raises:
        UserError: Fewer than two classes, or of classes that overlap none, have pixels to train on;
            or the validation images have a class that the training images have not, or none; or a
            part has too few images.
    """
    if facts.train_images < 2 or not facts.val_images:
        message = (
            f"has {facts.train_images} images to train and {facts.val_images} to validate on;"
            " there must be at least 2 and 1"
        )
        raise UserError("dataset", subject, message)
    trained = {n for n, p in zip(facts.classes, facts.train_pixels, strict=True) if p}
    validated = {n for n, p in zip(facts.classes, facts.val_pixels, strict=True) if p}
    if facts.multilabel and not trained:
        raise UserError("classes", subject, "no pixel of its training labels is of a class")
    if not facts.multilabel and len(trained) < 2:
        message = (
            f"its training labels hold one class alone ({', '.join(sorted(trained)) or 'none'});"
            " label a second one, or name what no shape covers with --background NAME"
        )
        raise UserError("classes", subject, message)
    if not validated and not facts.multilabel:
        message = (
            "no pixel of its validation labels is of a class, and nothing can be scored; label"
            " some of them, or split anew (--seed, --val-list)"
        )
        raise UserError("classes", subject, message)
    if unknown := sorted(validated - trained):
        message = (
            f"the validation images have {', '.join(unknown[:5])}, which no training image has;"
            " label some of them in training images, leave them out with --ignore NAME, or split"
            " anew (--seed, --val-list)"
        )
        raise UserError("classes", subject, message)
