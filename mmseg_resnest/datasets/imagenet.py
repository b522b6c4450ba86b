# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""ImageNet's validation images, and how published evaluations cut the middle of them.

Sources: ``zhanghang1989/ResNeSt`` (``scripts/torch/verify.py``, ``scripts/gluon/verify.py``) and
timm's evaluation.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..io.image_files import IMAGE_SUFFIXES
from ..io.image_sources import read_image_file
from ..io.text import error_words, printable

__all__ = ["CLASSES", "imagenet_samples", "normalised", "read_rgb", "centre_crop"]

CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LAYOUT = (
    "it is val/WNID/*.JPEG, a folder for each of the 1,000 classes, or val/*.JPEG with a list "
    "val.txt beside val, a line for each image: its name, and its class from 0 to 999 in the order "
    "of the WNIDs"
)


def centre_crop(image: Image.Image, size: int, layout: str, bicubic: bool = False) -> Image.Image:
    """The middle of an image as a published evaluation takes it.

    Args:
        image: RGB.
        size: The test crop in pixels.
        layout: Whose evaluation: ``published``: cut the square ``size / (size + 32)`` of the short
            edge, resize it (bicubic). ``gluoncv``: resize the short edge to ``size / 0.875``
            (bilinear, without antialiasing), cut; above 320 as published. ``timm``: resize the
            short edge to ``size / 0.875``, from 320 on to ``size + 32``, cut.
        bicubic: Of ``timm``: bicubic in place of bilinear.

    Returns:
        size x size pixels.
    """
    width, height = image.size
    if layout == "published" or (layout == "gluoncv" and size > 320):
        edge = size / (size + 32) * min(width, height)
        left, top = round((width - edge) / 2), round((height - edge) / 2)
        square = image.crop((left, top, left + edge, top + edge))
        return square.resize((size, size), Image.Resampling.BICUBIC)
    exact = size + 32 if layout == "timm" and size >= 320 else size / 0.875
    short = math.ceil(exact) if layout == "gluoncv" else math.floor(exact)
    longer = int(short * max(width, height) / min(width, height))
    shape = (short, longer) if width < height else (longer, short)
    if layout == "gluoncv":
        pixels = cv2.resize(np.asarray(image), shape, interpolation=cv2.INTER_LINEAR)
        image = Image.fromarray(pixels)
        left, top = ((edge - size) // 2 for edge in shape)
    else:
        how = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
        image = image.resize(shape, how)
        left, top = (round((edge - size) / 2) for edge in shape)
    return image.crop((left, top, left + size, top + size))


def read_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """An image file as RGB, as it lies: EXIF orientation is not followed, as published.

    Raises:
        UserError: It cannot be read or decoded.
    """
    data = read_image_file(os.fspath(path))
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds
        message = f"cannot be decoded ({error_words(error)}); copy it again"
        raise UserError("image", path, message) from error


def normalised(image: Image.Image) -> Tensor:
    """An RGB image as the published networks take it, (3, H, W) float32."""
    pixels = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A file or folder that cannot be read is a user's error."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        message = f"cannot be read ({error.strerror}); change its permissions"
        raise UserError("unreadable", where, message) from error


def imagenet_samples(root: str | os.PathLike[str]) -> tuple[Path, list[tuple[Path, int]]]:
    """ImageNet's validation images and their classes, 0 to 999 in the order of the WNIDs.

    Args:
        root: The folder of the data sets, which holds ``imagenet/``, or ImageNet's own, which
            holds ``val/``.

    Returns:
        The folder ``val``; and each image with its class.

    Raises:
        UserError: The folder or the list is missing, unreadable or empty, or says something else.
    """
    places = [Path(root, "imagenet", "val"), Path(root, "val")]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        message = f"ImageNet's validation images are not here, nor in {places[1]}; {_LAYOUT}; "
        message += "--data-root names the folder that holds imagenet/ or val/"
        raise UserError("not-found", places[0], message)
    with _reading(folder):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        entries = [entry for entry in entries if entry.name[0] != "."]
        classes = [entry.name for entry in entries if entry.is_dir()]
    if not classes:
        images = {e.name for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES)}
        return folder, _listed(folder, images)
    if len(classes) != CLASSES:
        message = f"has {len(classes)} folders of classes instead of 1,000; {_LAYOUT}"
        raise UserError("dataset", folder, message)
    with _reading(folder):
        samples = [
            (folder / name / image, label)
            for label, name in enumerate(classes)
            for image in sorted(os.listdir(folder / name))
            if image.lower().endswith(IMAGE_SUFFIXES)
        ]
    if not samples:
        raise UserError("empty", folder, f"its folders hold no images; {_LAYOUT}")
    return folder, samples


def _listed(folder: Path, images: set[str]) -> list[tuple[Path, int]]:
    """Images of a flat folder with the classes that the list beside it gives them."""
    places = [folder.parent / "val.txt", folder.parent / "meta" / "val.txt", folder / "val.txt"]
    file = next((place for place in places if place.is_file()), None)
    if not images:
        raise UserError("empty", folder, f"holds no images; {_LAYOUT}")
    if file is None:
        message = f"the classes of the images in {folder} are missing; {_LAYOUT}"
        raise UserError("not-found", places[0], message)
    with _reading(file):
        lines = file.read_text("utf-8", "replace").splitlines()
    samples = []
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"(?:.*/)?([^/\s]+)\s+(\d{1,3})", line.strip())
        if line.strip() and (match is None or match[1] not in images):
            reason = (
                "names no image of val" if match else "is not a name with a class from 0 to 999"
            )
            message = f"line {number} {reason}: {printable(line[:80])!r}; {_LAYOUT}"
            raise UserError("dataset", file, message)
        if match:
            samples.append((folder / match[1], int(match[2])))
    without = images - {path.name for path, _ in samples}
    if without or len(samples) != len(images):
        named = min(without, default="")
        message = f"has {len(samples):,} lines for {len(images):,} images"
        message += f", and none for {printable(named)}" if named else ""
        raise UserError("dataset", file, f"{message}; {_LAYOUT}")
    return samples
