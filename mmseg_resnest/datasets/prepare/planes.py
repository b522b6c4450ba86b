# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Labels of classes that may overlap: areas painted into bit planes, and one mask a class."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import UserError
from ...io.bit_planes import bits_type, file_type, from_file, unpack
from ...io.image_files import IMAGE_SUFFIXES
from ...io.text import printable
from ..class_names import check_class_name
from .custom_options import CustomOptions
from .labels import IMAGE_FORMATS, indices
from .masks import check_size, images_in
from .places import Place, list_folder
from .samples import IGNORED, Sample, composed, image_size, speller

_FORMS = ("labelme", "coco", "masks")  # of labels in which classes may overlap


def check_overlap(options: CustomOptions) -> None:
    """Refuse options that do not go with classes that overlap, or go with these alone."""
    form = options.form
    if not options.multilabel:
        if form == "masks":
            message = "one mask a class can overlap; give --multilabel, which keeps that"
            raise UserError("argument-missing", "--format masks", message)
        return
    if form not in _FORMS:
        message = f"such masks have one class a pixel; --multilabel takes {', '.join(_FORMS)}"
        raise UserError("argument", f"--format {form}", message)
    given = {"--background": options.background, "--label-map": options.label_map}
    for option, value in given.items():
        if value:
            message = "is for classes that exclude each other; leave it out with --multilabel"
            raise UserError("argument", option, message)


@dataclass(frozen=True)
class BitTable:
    """The bits of each name, in place of a table of labels: that of its class, or all (ignored)."""

    bits: Mapping[str, int]
    classes: int

    @classmethod
    def of(cls, labels: Mapping[str, int], classes: int) -> BitTable:
        """The bits of names whose labels are known."""
        full = int(np.iinfo(bits_type(classes)).max)
        bits = {name: full if label == IGNORED else 1 << label for name, label in labels.items()}
        return cls(bits, classes)

    def __contains__(self, name: object) -> bool:
        return name in self.bits

    def __getitem__(self, name: str) -> int:
        return self.bits[name]

    @property
    def kind(self) -> type[np.unsignedinteger[Any]]:
        """The type of the numbers."""
        return bits_type(self.classes)


Table = Mapping[str, int] | BitTable


def blank(height: int, width: int, table: Table, uncovered: int) -> NDArray[Any]:
    """Labels (height, width) before areas are painted: ``uncovered``, or of no class in bits."""
    if isinstance(table, BitTable):
        return np.zeros((height, width), table.kind)
    return np.full((height, width), uncovered, np.uint8)


def paint(labels: NDArray[Any], where: Any, name: str | None, table: Table) -> None:
    """Paint an area of a class over others, or with them in bits; None ignores it."""
    if isinstance(table, BitTable):
        full = np.iinfo(table.kind).max
        labels[where] |= table.kind(full if name is None else table[name])
    else:
        labels[where] = IGNORED if name is None else table[name]


def read_class_masks(
    source: Path, images: Path | None, classes: Collection[str] = ()
) -> list[Sample]:
    """The samples of a folder with one mask a class: ``CLASS/NAME.png`` or ``NAME/CLASS.png``.

    A pixel that is not 0 is of the class. An image that has no mask of a class shows none of it.
    ``classes`` are names that are known, whose accents a folder may spell in another way.

    Raises:
        UserError: A folder is missing, or a mask has no image.
    """
    if not source.is_dir():
        raise UserError("wrong-path-type", f"--source {source}", "is not a folder of masks")
    if images is None:
        message = "give the folder of images (one mask a class)"
        raise UserError("argument-missing", "--images", message)
    masks = [p for p in list_folder(source) if Path(p.name).suffix.lower() in IMAGE_SUFFIXES]
    own = {place.file.resolve() for place in masks}  # masks may lie among the images
    pictures = images_in(images, other=own) or images_in(images, suffixes=(".npy",))
    parts = [Path(place.name).with_suffix("").parts for place in masks]
    flat = next((place for place, part in zip(masks, parts, strict=True) if len(part) < 2), None)
    if flat is not None:
        message = "lies in no folder of a class or an image; put it in CLASS/NAME.png"
        raise UserError("dataset", flat, message)
    spell, spell_class = speller(pictures), speller(classes)
    by_image = all(spell("/".join(part[:-1])) in pictures for part in parts)
    found: dict[str, dict[str, Place]] = {name: {} for name in pictures}
    for place, part in zip(masks, parts, strict=True):
        path, label = (part[:-1], part[-1]) if by_image else (part[1:], part[0])
        name, label = spell("/".join(path)), spell_class(composed(label))
        check_class_name(label, f"{place}: its class")
        if name not in found:
            message = f"there is no image {printable(name)} in {images}"
            raise UserError("dataset", place, message)
        if label in found[name]:
            raise UserError("dataset", place, f"and {found[name][label]} are one mask")
        found[name][label] = place
    return [
        Sample(
            name, pictures[name].file,
            partial(_render, pictures[name].file, [*some.items()]),
            frozenset(some), pictures[name].file.suffix,
        )
        for name, some in found.items()
    ]  # fmt: skip


def _render(
    image: Path, masks: Sequence[tuple[str, Place]], table: Table, uncovered: int
) -> NDArray[Any]:
    found = [(name, place, _area(place)) for name, place in masks]
    like = found[0][2].shape if found else None
    labels = blank(*image_size(image, image, like), table, uncovered)
    for name, place, values in found:
        check_size(values, place, image)
        paint(labels, values, name, table)
    return labels


def _area(place: Place) -> NDArray[np.bool_]:
    """The pixels (H, W) of a mask of one class that are not 0."""
    data = place.read()
    area: NDArray[np.bool_] = indices(data, place) != 0
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
        if image.mode == "P" and (np.asarray(image.convert("RGB")).any(axis=2) != area).any():
            message = (
                "has a palette in which another number than 0 is black; save it as a grey "
                "image, with 0 for what is not of the class"
            )
            raise UserError("label", place, message)
    return area


def file_planes(pixels: NDArray[Any], classes: int) -> NDArray[np.uint8]:
    """Planes (C, H, W) of 0, 1 and 255 (ignored) of the pixels of a file."""
    return unpack(from_file(pixels.astype(file_type(classes)), classes), classes)


def count_planes(pixels: NDArray[Any], classes: int) -> dict[int, int]:
    """Pixels of each class of a file of bit planes, and of ignored ones under 255."""
    planes = file_planes(pixels, classes)
    counts = {c: int((plane == 1).sum()) for c, plane in enumerate(planes)}
    counts[IGNORED] = int((planes[0] == IGNORED).sum())
    counts[IGNORED + 1] = planes[0].size - counts[IGNORED]  # labelled, if of no class
    return {label: count for label, count in counts.items() if count}
