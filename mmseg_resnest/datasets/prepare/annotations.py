# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The forms in which people keep labels of their own: LabelMe, COCO, colours, label numbers.

Each reader lists the samples of a source without decoding a pixel; a sample renders its label map
when it is asked, in any process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ...io.image_files import IMAGE_SUFFIXES
from .coco import read_coco
from .labelme import read_labelme
from .labels import Labels, colours_to_labels, indices, open_image
from .samples import IGNORED, IGNORED_NAME, Sample, image_size
from .sources import Place, list_folder
from .tables import Colour

FORMATS = ("labelme", "coco", "colour", "index")


def read_samples(
    form: str,
    sources: Sequence[Path],
    images: Path | None = None,
    colours: Sequence[Colour] = (),
    classes: Sequence[str] = (),
    label_suffix: str = "",
) -> list[Sample]:
    """The samples of a source.

    Args:
        form: One of ``FORMATS``.
        sources: LabelMe: folders of JSON files; COCO: JSON files, or folders of them; colours and
            label numbers: folders of masks.
        images: Folder of the images; None where the labels say where they are, or beside them.
        colours: The colour table, for ``colour``.
        classes: Names by label number, for ``index``.
        label_suffix: What a mask's name has after its image's, e.g. ``_mask``.

    Returns:
        The samples, in order of their names.

    Raises:
        UserError: A file is missing or not of that form; names it.
    """
    for source in sources:
        if not source.exists():
            raise UserError("not-found", f"--source {source}", "does not exist")
    if images is not None and not images.is_dir():
        raise UserError("not-found", f"--images {images}", "is no folder")
    samples: list[Sample] = []
    for source in sources:
        if form == "labelme":
            samples += read_labelme(source, images)
        elif form == "coco":
            samples += read_coco(source, images)
        else:
            samples += _masks(form, source, images, colours, classes, label_suffix)
    if not samples:
        what = "JSON files" if form in ("labelme", "coco") else "masks (PNG)"
        raise UserError("dataset", ", ".join(map(str, sources)), f"holds no {what} with samples")
    names: dict[str, Sample] = {}
    for sample in samples:
        _check_name(sample)
        if sample.name in names:
            raise UserError(
                "dataset",
                sample.name,
                f"is the name of two images ({_where(names[sample.name])},"
                f" {_where(sample)}); rename one of them",
            )
        names[sample.name] = sample
    return sorted(samples, key=lambda sample: sample.name)


def _check_name(sample: Sample) -> None:
    """Makes sure that a list can name the image, one a line, in UTF-8."""
    name = sample.name
    try:
        name.encode()
        fits = len(name.splitlines()) == 1
    except UnicodeEncodeError:
        fits = False
    if not fits:
        shown = name.encode("utf-8", "backslashreplace").decode().encode("unicode_escape").decode()
        raise UserError(
            "dataset",
            shown,
            "no list of images can hold this name (it has a line break or is not"
            " UTF-8); rename the image and its labels",
        )


def _where(sample: Sample) -> str:
    return str(sample.image) if isinstance(sample.image, Path) else "in its JSON file"


def _masks(
    form: str,
    source: Path,
    images: Path | None,
    colours: Sequence[Colour],
    classes: Sequence[str],
    label_suffix: str,
) -> list[Sample]:
    if not source.is_dir():
        raise UserError("not-found", f"--source {source}", "is no folder of masks")
    if images is None:
        raise UserError(
            "argument", f"--format {form}", "give the folder of the images with --images"
        )
    if form == "colour" and not any(colour.rgb for colour in colours):
        raise UserError(
            "classes", "--format colour", "give the table of names and colours with --classes FILE"
        )
    if form == "index" and not classes:
        raise UserError(
            "classes", "--format index", "give the names of labels 0, 1, ... with --classes FILE"
        )
    names = frozenset(classes) or frozenset(colour.name for colour in colours)
    masks: dict[str, Place] = {}
    for place in list_folder(source):
        path = Path(place.name)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.stem.endswith(label_suffix):
            _only_one(masks, path.with_suffix("").as_posix(), place)
    own = {place.file.resolve() for place in masks.values()}  # masks may lie among the images
    pictures: dict[str, Place] = {}
    for place in list_folder(images):
        path = Path(place.name)
        if path.suffix.lower() in IMAGE_SUFFIXES and place.file.resolve() not in own:
            _only_one(pictures, path.with_suffix("").as_posix(), place)
    samples = []
    for stem, place in masks.items():
        stem = stem.removesuffix(label_suffix)
        if stem not in pictures:
            raise UserError(
                "dataset", place.file, f"there is no image {stem} in {images}; see --label-suffix"
            )
        image = pictures.pop(stem)
        render = (
            partial(_render_colours, place, image.file, tuple(colours))
            if form == "colour"
            else partial(_render_indices, place, image.file, tuple(classes))
        )
        samples.append(
            Sample(
                stem, image.file, f"{place.stamp} {image.stamp}", render, names, image.file.suffix
            )
        )
    if pictures:
        first = next(iter(pictures.values()))
        raise UserError(
            "dataset",
            first.file,
            f"has no mask in {source} ({len(pictures)} images have none); add them or"
            " take these images out of the folder",
        )
    return samples


def _only_one(places: dict[str, Place], stem: str, place: Place) -> None:
    if stem in places:
        raise UserError(
            "dataset", "", f"{place.file} and {places[stem].file} share a name; remove one of them"
        )
    places[stem] = place


def _check_size(labels: npt.NDArray[Any], place: Place, image: Path) -> None:
    height, width = image_size(image, image)
    if labels.shape[:2] != (height, width):
        raise UserError(
            "size-mismatch",
            place,
            f"is {labels.shape[1]}x{labels.shape[0]}, but its image {image} is"
            f" {width}x{height}; get the mask of that size",
        )


def _render_colours(
    place: Place,
    image: Path,
    colours: Sequence[Colour],
    table: Mapping[str, int],
    uncovered: int,
) -> Labels:
    mask = open_image(place.read(), place)
    if mask.mode in ("RGBA", "LA", "PA") or "transparency" in mask.info:
        mask = mask.convert("RGBA")
        if mask.getchannel("A").getextrema() != (255, 255):
            raise UserError(
                "size-mismatch", place, "has transparent pixels; save it without an alpha channel"
            )
    rgb = np.asarray(mask.convert("RGB"))
    _check_size(rgb, place, image)
    known = {colour.rgb: table[colour.name] for colour in colours if colour.rgb is not None}
    return colours_to_labels(rgb, known, place)


def _render_indices(
    place: Place, image: Path, classes: Sequence[str], table: Mapping[str, int], uncovered: int
) -> Labels:
    values = indices(place.read(), place)
    _check_size(values, place, image)
    largest = int(values.max()) if values.size else 0
    found = np.unique(values)
    bad = [int(v) for v in found if int(v) >= len(classes) and int(v) != IGNORED]
    if bad:
        raise UserError(
            "classes",
            place,
            f"holds label {bad[0]}, but the list of classes has {len(classes)} names (0 to"
            f" {len(classes) - 1}; {IGNORED} is ignored); add the name, or `{IGNORED_NAME}`",
        )
    lut = np.full(max(largest, IGNORED) + 1, IGNORED, dtype=np.uint8)
    lut[: len(classes)] = [table[name] for name in classes]
    result: Labels = lut[values]
    return result
