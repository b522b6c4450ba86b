# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What is known of the images, the labels and the machine before anything is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError
from ...io.image_header import read_header
from ...io.processes import cpu_count
from ..forecast import free_memory

_MOST_LOOKED_AT = 200  # images whose size is read


@dataclass(frozen=True)
class Facts:
    """What decisions are made from.

    Attributes:
        train_images: How many images there are to train on.
        val_images: How many there are to validate on.
        width: Of the median training image, in pixels.
        height: The same.
        classes: Names, in the order of the labels.
        train_pixels: Labelled pixels of each class in the training images.
        val_pixels: The same of the validation images.
        memory: Bytes that a training may use: of the GPU, or else of the machine; None where that
            is not known.
        cores: Processor cores.
        gpu: Its name; empty without one.
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


def collect_facts(
    labels: Sequence[Path],
    val_images: int,
    classes: Sequence[str],
    train_pixels: Sequence[int],
    val_pixels: Sequence[int],
) -> Facts:
    """Facts of a prepared data set on this machine.

    Args:
        labels: The label maps of the training images; the sizes of some are read.
        val_images: How many validation images there are.
        classes: Names, in the order of the labels.
        train_pixels: Labelled pixels of each class in the training images.
        val_pixels: The same of the validation images.

    Raises:
        UserError: A label map cannot be read.
    """
    chosen = np.linspace(0, len(labels) - 1, min(len(labels), _MOST_LOOKED_AT)).round()
    headers = [read_header(labels[int(index)], str(labels[int(index)])) for index in chosen]
    sizes = [(one.width, one.height) for one in headers if one is not None]
    width, height = np.median(np.array(sizes), axis=0)
    cuda = torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if cuda else ""
    return Facts(
        train_images=len(labels),
        val_images=val_images,
        width=int(width),
        height=int(height),
        classes=tuple(classes),
        train_pixels=tuple(train_pixels),
        val_pixels=tuple(val_pixels),
        memory=free_memory(cuda),
        cores=cpu_count(),
        gpu=gpu,
    )


def check_facts(facts: Facts, subject: object) -> None:
    """Refuse labels that nothing can be trained on, or that cannot be validated.

    Raises:
        UserError: Fewer than two classes have pixels to train on, or none of those that the
            validation images have is in the training images, or a part has no image.
    """
    if facts.train_images < 2 or not facts.val_images:
        message = f"has {facts.train_images} images to train and {facts.val_images} to validate on;"
        raise UserError("dataset", subject, f"{message} there must be at least 2 and 1")
    trained = {n for n, p in zip(facts.classes, facts.train_pixels, strict=True) if p}
    validated = {n for n, p in zip(facts.classes, facts.val_pixels, strict=True) if p}
    if len(trained) < 2:
        message = (
            f"its training labels hold one class alone ({', '.join(sorted(trained)) or 'none'});"
            " label a second one, or name what no shape covers with --background NAME"
        )
        raise UserError("classes", subject, message)
    if unknown := sorted(validated - trained):
        message = (
            f"the validation images have {', '.join(unknown[:5])}, which no training image has;"
            " label some of them in training images, leave them out with --ignore NAME, or split"
            " anew (--seed, --val-list)"
        )
        raise UserError("classes", subject, message)
