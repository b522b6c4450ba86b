# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The forms in which people keep labels of their own: LabelMe, COCO, colours, label numbers.

Each reader lists the samples of a source without decoding a pixel; a sample renders its label map
when it is asked, in any process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from .coco import read_coco
from .labelme import read_labelme
from .masks import read_masks
from .samples import Sample
from .tables import Colour

FORMATS = ("labelme", "coco", "colour", "index")


def read_samples(
    form: str,
    sources: Sequence[Path],
    images: Path | None = None,
    rows: Sequence[Colour] = (),
    label_suffix: str = "",
) -> list[Sample]:
    """The samples of a source.

    Args:
        form: One of ``FORMATS``.
        sources: LabelMe: folders of JSON files; COCO: JSON files, or folders of them; colours and
            label numbers: folders of masks.
        images: Folder of the images; None where the labels say where they are, or beside them.
        rows: The class list or colour table, for masks.
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
        raise UserError("not-found", f"--images {images}", "is not a folder")
    samples: list[Sample] = []
    for source in sources:
        if form == "labelme":
            samples += read_labelme(source, images)
        elif form == "coco":
            samples += read_coco(source, images)
        else:
            samples += read_masks(form, source, images, rows, label_suffix)
    if not samples:
        what = "JSON files" if form in ("labelme", "coco") else "masks (PNG)"
        raise UserError("empty", ", ".join(map(str, sources)), f"holds no {what} with samples")
    names: dict[str, Sample] = {}
    for sample in samples:
        _check_name(sample.name)
        if sample.name in names:
            where = ", ".join(
                str(s.image) if isinstance(s.image, Path) else "in its JSON file"
                for s in (names[sample.name], sample)
            )
            message = f"is the name of two images ({where}); rename one of them"
            raise UserError("dataset", sample.name, message)
        names[sample.name] = sample
    return sorted(samples, key=lambda sample: sample.name)


def _check_name(name: str) -> None:
    """Makes sure that a list can name the image, one a line, in UTF-8."""
    try:
        name.encode()
        fits = len(name.splitlines()) == 1
    except UnicodeEncodeError:
        fits = False
    if not fits:
        shown = name.encode("utf-8", "backslashreplace").decode().encode("unicode_escape").decode()
        message = "has a line break or is not UTF-8; rename the image and its labels"
        raise UserError("dataset", shown, message)
