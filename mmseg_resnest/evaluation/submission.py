# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the servers of the benchmarks take: label maps in their own numbers, names and folders."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from ..io.atomic import atomic_open
from .cityscapes import label_ids
from .visualize import palette_image

__all__ = ["FORMATS", "Submission"]

_CITYSCAPES_NAME = re.compile(r"^(?P<core>[^_]+_\d+_\d+)_leftImg8bit$")


def _voc_palette() -> list[list[int]]:
    """VOC's colours: the bits of an index, spread over red, green and blue from the top."""
    return [
        [sum((index >> (3 * bit + c) & 1) << (7 - bit) for bit in range(8)) for c in range(3)]
        for index in range(21)
    ]


@dataclass(frozen=True)
class _Format:
    classes: int
    mode: str
    values: frozenset[int]
    convert: Callable[[NDArray[np.uint8]], Image.Image]
    name: Callable[[str], str] = str
    folder: str = ""


def _cityscapes_name(stem: str) -> str:
    found = _CITYSCAPES_NAME.match(stem)
    if found is None:
        raise UserError(
            "dataset",
            stem,
            "is not named like CITY_000000_000019_leftImg8bit; test on the downloaded images",
        )
    return f"{found['core']}_pred_labelIds"


FORMATS: dict[str, _Format] = {
    "cityscapes": _Format(
        classes=19,
        mode="L",
        values=frozenset(label_ids(np.arange(19)).tolist()),
        convert=lambda labels: Image.fromarray(label_ids(labels)),
        name=_cityscapes_name,
    ),
    "ade20k": _Format(
        classes=150,
        mode="L",
        values=frozenset(range(1, 151)),
        convert=lambda labels: Image.fromarray((labels + 1).astype(np.uint8)),
    ),
    "voc": _Format(
        classes=21,
        folder="results/VOC2012/Segmentation/comp6_test_cls",
        mode="P",
        values=frozenset(range(21)),
        convert=lambda labels: palette_image(labels, _voc_palette()),
    ),
}


class Submission:
    """The files of a submission: how they are named and made, checked and packed.

    ================ =============================================================== ============
    format           files                                                           values
    ================ =============================================================== ============
    ``cityscapes``   ``CITY_SEQ_FRAME_pred_labelIds.png``, 8-bit                     label ids
    ``ade20k``       ``NAME.png``, 8-bit                                             1 to 150
    ``voc``          ``results/VOC2012/Segmentation/comp6_test_cls/NAME.png``,       0 to 20
                     palette
    ================ =============================================================== ============

    Args:
        name: A key of ``FORMATS``.
        images: The images to predict, all of them.
        num_classes: Of the model.

    Raises:
        UserError: The format is unknown, the number of classes is not its data set's, or two
            images would get the same name.
    """

    def __init__(self, name: str, images: Sequence[str], num_classes: int) -> None:
        if name not in FORMATS:
            raise UserError("argument", f"--format {name}", f"choose from {', '.join(FORMATS)}")
        self.name = name
        self.format = FORMATS[name]
        if num_classes != self.format.classes:
            counts = f"{self.format.classes} classes, the data set of the config has {num_classes}"
            raise UserError("classes", f"--format {name}", f"the server expects {counts}")
        self.files: dict[str, str] = {}
        owner: dict[str, str] = {}
        for image in images:
            stem = os.path.splitext(os.path.basename(image))[0]
            file = str(PurePosixPath(self.format.folder) / f"{self.format.name(stem)}.png")
            if file in owner:
                raise UserError(
                    "dataset", image, f"would be {file}, as {owner[file]}; rename one of them"
                )
            owner[file] = image
            self.files[image] = file

    def picture(self, labels: NDArray[np.integer]) -> Image.Image:
        """The file's contents for a prediction (H, W) of classes counted from 0."""
        return self.format.convert(np.asarray(labels, np.uint8))

    def check(self, folder: str | os.PathLike[str]) -> None:
        """Read a finished folder back: names, number, sizes, type and values.

        Raises:
            UserError: The first thing that is wrong.
        """
        root = Path(folder)
        have = {str(p.relative_to(root).as_posix()) for p in root.rglob("*.png")}
        wanted = set(self.files.values())
        for file in sorted(wanted - have)[:1]:
            missing = f"{len(wanted - have)} of {len(wanted)} predictions are missing"
            raise UserError("not-found", root / file, missing)
        for file in sorted(have - wanted)[:1]:
            raise UserError(
                "output-exists",
                root / file,
                "is not a prediction of the test split; empty the folder or choose another --out",
            )
        for image, file in self.files.items():
            self._check_file(root / file, image)

    def _check_file(self, path: Path, image: str) -> None:
        try:
            with Image.open(path) as picture:
                mode, values = picture.mode, np.asarray(picture)
            with Image.open(image) as source:
                size = source.size
        except OSError as error:
            raise UserError("image", path, f"cannot be read ({error})") from error
        if mode != self.format.mode:
            modes = f"is of mode {mode}, the server expects {self.format.mode}"
            raise UserError("image", path, modes)
        if (values.shape[1], values.shape[0]) != size:
            sizes = f"{values.shape[1]}x{values.shape[0]} pixels, its image {size[0]}x{size[1]}"
            raise UserError("size-mismatch", path, f"has {sizes}")
        wrong = set(np.flatnonzero(np.bincount(values.reshape(-1)))) - self.format.values
        if wrong:
            raise UserError("label", path, f"holds {min(wrong)}, which the server does not know")

    def pack(self, folder: str | os.PathLike[str], archive: str | os.PathLike[str]) -> Path:
        """Put a folder's predictions into a zip and read it back; returns the zip.

        The same predictions give the same bytes.

        Raises:
            UserError: It cannot be written.
        """
        root, target = Path(folder), Path(archive)
        with atomic_open(target) as part:
            # PNGs do not get smaller.
            with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as packed:
                for file in sorted(self.files.values()):
                    info = zipfile.ZipInfo(file, (1980, 1, 1, 0, 0, 0))
                    info.external_attr = 0o644 << 16
                    packed.writestr(info, (root / file).read_bytes())
            part.flush()
            with zipfile.ZipFile(part.name) as packed:
                bad = packed.testzip()
                if bad or sorted(packed.namelist()) != sorted(self.files.values()):
                    raise UserError("corrupt", target, f"bad entry {bad}; try again")
        return target
