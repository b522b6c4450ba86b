# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The options of a data set of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...io.bands import BandOptions


@dataclass(frozen=True)
class CustomOptions:
    """What a person may say about a data set of theirs.

    Attributes:
        name: Folder below the data root and name of the config.
        form: One of ``FORMATS``.
        sources: Where the labels are.
        val_sources: Where the labels of the validation images are, if they are apart.
        images: Folder of the images.
        val_images: Folder of the validation images; None is ``images``.
        classes: Class list or colour table; None takes the names that occur, sorted.
        ignore: Names whose pixels are ignored; ``__ignore__`` always is.
        background: The name of pixels that no shape covers; None ignores them.
        label_suffix: What a mask's name has after that of its image.
        image_suffix: What an image's name has after that of its mask.
        val_fraction: Share of the images to validate on.
        val_list: File with the names of the images to validate on, instead of a share.
        test_list: With ``val_list``: file with the names of images to leave out, if they are not in
            that one.
        group_pattern: The first group of this pattern, matched with the whole name, is the group;
            None goes by the number at the end of the name.
        frames: Whether numbered images are frames of videos; None measures it.
        seed: Of the split.
        allow_incomplete: Leave out annotations of COCO's files that cannot be drawn, images that
            are not there, and images without a mask.
        label_map: What the config reads classes as, see :func:`~..label_map.merge_classes`; the
            files keep them all.
        multilabel: Keep classes that overlap, as bit planes; pixels that no shape covers are of no
            class.
        bands: How images of bands are read, if not as they are; TIFF files are read so, too.
    """

    name: str
    form: str
    sources: tuple[Path, ...]
    val_sources: tuple[Path, ...] = ()
    images: Path | None = None
    val_images: Path | None = None
    classes: Path | None = None
    ignore: tuple[str, ...] = ()
    background: str | None = None
    label_suffix: str = ""
    image_suffix: str = ""
    val_fraction: float = 0.2
    val_list: Path | None = None
    test_list: Path | None = None
    group_pattern: str | None = None
    frames: bool | None = None
    seed: int = 0
    allow_incomplete: bool = False
    label_map: Mapping[str, str] = field(default_factory=dict)
    multilabel: bool = False
    bands: BandOptions | None = None
