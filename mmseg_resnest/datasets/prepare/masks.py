# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Masks: image files of colours or of label numbers, one for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ...io.image_files import IMAGE_SUFFIXES
from ...io.text import printable
from .colours import read_palettes
from .custom_options import CustomOptions
from .labels import Labels, check_pages, colours_to_labels, indices, open_image
from .places import Place, list_folder
from .samples import IGNORED, Sample, image_size, is_turned, speller, unread
from .tables import IGNORED_NAME, Colour


def read_masks(
    options: CustomOptions,
    source: Path,
    images: Path | None,
    rows: Sequence[Colour],
    notes: list[str],
) -> list[Sample]:
    """The samples of a folder of masks; ``rows`` names the colours, or labels 0, 1, ... in order.

    ``notes`` takes what is left out by ``options.allow_incomplete``.

    Raises:
        UserError: A folder or the table is missing, or a mask or an image has no partner.
    """
    form, label_suffix = options.form, options.label_suffix
    if not source.is_dir():
        raise UserError("wrong-path-type", f"--source {source}", "is not a folder of masks")
    if images is None:
        raise UserError("argument-missing", "--images", f"give the folder of images ({form} masks)")
    if not rows:
        message = "give the list of the names of labels 0, 1, ... (index masks)"
        raise UserError("argument-missing", "--classes", message)
    names = frozenset(row.name for row in rows)
    masks = images_in(source, label_suffix)
    own = {place.file.resolve() for place in masks.values()}  # masks may lie among the images
    # Beside photos, .npy files are something else.
    end = options.image_suffix
    pictures = images_in(images, end, own) or images_in(images, end, suffixes=(".npy",))
    spell = speller(pictures)
    samples = []
    for stem, place in masks.items():
        stem = spell(stem.removesuffix(label_suffix) + end)
        if stem not in pictures:
            message = (
                f"there is no image {stem} in {images}; add it, rename or move the mask, or see"
            )
            message += " --label-suffix and --image-suffix for what only one of the names ends in"
            if other := unread([images / stem]):
                message = f"{other} is an image of a kind that is not read; convert it to PNG"
            raise UserError("dataset", place, message)
        image = pictures.pop(stem).file
        reader = _render_colours if form == "colour" else _render_indices
        render = partial(reader, place, image, tuple(rows))
        samples.append(Sample(stem, image, render, names, image.suffix))
    if pictures:
        first, count = next(iter(pictures.values())), len(pictures)
        if not options.allow_incomplete:
            message = (
                f"has no mask in {source} (as {count:,} images); add it or move the image, or"
                " leave them out with --allow-incomplete"
            )
            raise UserError("dataset", first, message)
        notes.append(f"{count:,} images have no mask and are left out, e.g. {first}")
    return samples


def check_palettes(masks: Sequence[Place], processes: int, rows: Sequence[Colour] = ()) -> None:
    """Refuse masks whose palettes give one number two colours: it is not a label then.

    Nor may they give a number the colour that a class of another number has in the table.
    """
    palettes = read_palettes(masks, processes)
    if (other_class := palettes.disagreement(rows)) is not None:
        number, name = other_class
        message = (
            f"and its like have the colour of {printable(name)!r} for the number {number}, which is"
            f" {printable(rows[number].name)!r} in the list of classes; put that into the order of"
            " the numbers, or see --format colour"
        )
        raise UserError("label", masks[0], message)
    if palettes.conflict is not None:
        number, one, other = palettes.conflict
        message = (
            f"and {other} have two colours for the number {number}, as programs number colours"
        )
        message += " anew in each file; see --format colour, or save label numbers as grey images"
        raise UserError("label", one, message)


def check_effects(options: CustomOptions) -> None:
    """Refuse options of a data set that would have no effect with the others."""
    form = options.form
    masks = form in ("colour", "index")
    if options.background is not None and masks:
        message = f"names pixels that no shape covers, and {form} masks have none; leave it out"
        raise UserError("argument", f"--background {options.background}", message)
    for option, end in (("label", options.label_suffix), ("image", options.image_suffix)):
        if end and not masks:
            message = f"is for colour and index masks; leave it out with --format {form}"
            raise UserError("argument", f"--{option}-suffix {end}", message)
    if options.val_images is not None and not options.val_sources:
        message = "are those of --val-source; give it, too"
        raise UserError("argument", f"--val-images {options.val_images}", message)
    if options.val_list is not None and options.val_sources:
        message = "and --val-source both say what is for validation; leave one of them out"
        raise UserError("argument", f"--val-list {options.val_list}", message)


def images_in(
    folder: Path,
    suffix: str = "",
    other: Set[Path] = frozenset(),
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
) -> dict[str, Place]:
    """The image files, less ``other``, whose stems end in the suffix, by path without ending."""
    found: dict[str, Place] = {}
    for place in list_folder(folder):
        path = Path(place.name)
        if path.suffix.lower() not in suffixes or not path.stem.endswith(suffix):
            continue
        if place.file.resolve() in other:
            continue
        stem = path.with_suffix("").as_posix()
        if stem in found:
            message = f"and {found[stem]} share a name; remove one of them"
            raise UserError("dataset", place, message)
        found[stem] = place
    return found


def check_size(labels: npt.NDArray[Any], place: Place, image: Path) -> None:
    """Raise UserError unless a mask (H, W) or (H, W, C) has the size of its image."""
    height, width = image_size(image, image, labels.shape[:2])
    if labels.shape[:2] != (height, width):
        given = f"{labels.shape[1]}x{labels.shape[0]}"
        message = f"is {given}, but its image {image} is {width}x{height}"
        if is_turned(image, (height, width)):
            message += ", turned as its EXIF data say; turn the mask, too"
        raise UserError("size-mismatch", place, message)


def _render_colours(
    place: Place, image: Path, rows: Sequence[Colour], table: Mapping[str, int], uncovered: int
) -> Labels:
    data = place.read()
    mask = open_image(data, place)
    check_pages(mask, data, place)
    if mask.mode in ("RGBA", "LA", "PA") or "transparency" in mask.info:
        mask = mask.convert("RGBA")
        if mask.getchannel("A").getextrema() != (255, 255):
            message = "has transparent pixels; save it without an alpha channel"
            raise UserError("image", place, message)
    rgb = np.asarray(mask.convert("RGB"))
    check_size(rgb, place, image)
    known = {row.rgb: table[row.name] for row in rows if row.rgb is not None}
    return colours_to_labels(rgb, known, place)


def _render_indices(
    place: Place, image: Path, rows: Sequence[Colour], table: Mapping[str, int], uncovered: int
) -> Labels:
    values = indices(place.read(), place)
    check_size(values, place, image)
    bad = [int(v) for v in np.unique(values) if int(v) >= len(rows) and int(v) != IGNORED]
    if bad:
        message = (
            f"holds label {bad[0]}, but the list of classes has {len(rows)} names, the first of"
            f" which is label 0; add the names that are missing, that of label 0 first"
            f" (`{IGNORED_NAME}` for what is ignored)"
        )
        if bad[0] > IGNORED:
            message = f"holds label {bad[0]}, and those of classes are 0 to 254; save ignored"
            message += " pixels as 255"
        raise UserError("label", place, message)
    lookup = np.full(max(len(rows), IGNORED + 1), IGNORED, dtype=np.uint8)
    lookup[: len(rows)] = [table[row.name] for row in rows]
    return lookup[values]
