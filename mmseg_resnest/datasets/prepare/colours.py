# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Which colours a folder of masks holds, and a draft of the table that names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import UserError
from ...io.atomic import atomic_write
from ...io.parallel import in_parallel
from .labels import IMAGE_FORMATS, check_lossless, check_pages, open_image, pack_colours
from .places import Place
from .tables import Colour

_MOST = 255  # colours in a draft: there can be no more classes
_SHOWN = 10

RGB = tuple[int, int, int]


def count_colours(masks: Sequence[Place], processes: int, strict: bool = False) -> Counter[RGB]:
    """Pixels of each colour in all masks.

    Args:
        masks: The files.
        processes: How many to read with.
        strict: Whether to refuse files that are lossy or have several pages.

    Raises:
        UserError: A mask is damaged, or of more than 8 bits, or lossy.
    """
    total: Counter[RGB] = Counter()
    for counts in in_parallel(partial(_colours, strict), masks, processes, "count colours"):
        total.update(counts)
    return total


def _colours(strict: bool, mask: Place) -> Counter[RGB]:
    data = mask.read()
    image = open_image(data, mask)
    if strict:
        check_lossless(image, data, mask)
        check_pages(image, data, mask)
    if image.mode.startswith(("I", "F")):
        message = "has label numbers of more than 8 bits, and no colours; see --format index"
        raise UserError("label", mask, message)
    image = image.convert("RGB")
    packed, counts = np.unique(pack_colours(np.asarray(image)), return_counts=True)
    colours = ((c >> 16, c >> 8 & 255, c & 255) for c in packed.tolist())
    return Counter(dict(zip(colours, counts.tolist(), strict=True)))


@dataclass(frozen=True)
class Palettes:
    """What the palettes of some masks say.

    Attributes:
        colours: Of each number, red, green and blue; empty with a conflict, or without palettes.
        conflict: A number with two colours, and the files that give it these.
    """

    colours: Mapping[int, RGB]
    conflict: tuple[int, Place, Place] | None = None

    def disagreement(self, rows: Sequence[Colour]) -> tuple[int, str] | None:
        """A number and the class of its colour, where ``rows`` have another class in that place."""
        if all(len(set(rgb)) == 1 for rgb in self.colours.values()):
            return None
        names = {row.rgb: row.name for row in rows if row.rgb is not None}
        for number, row in enumerate(rows):
            rgb = self.colours.get(number)
            if rgb in names and names[rgb] != row.name:
                return number, names[rgb]
        return None


def read_palettes(masks: Sequence[Place], processes: int) -> Palettes:
    """The palettes of those masks that have one.

    Programs that save as few colours as possible number them anew in each file. Where palettes
    differ, the pixels are decoded: a number that a file does not use may have any colour there.

    Raises:
        UserError: A mask is damaged.
    """
    files = {palette: mask for mask in masks if (palette := _palette(mask))}
    some = list(files.values()) if len(files) < 2 else masks
    first: dict[int, tuple[RGB, Place]] = {}
    work = partial(_numbered, len(files) > 1)
    for mask, numbers in in_parallel(work, some, processes, "compare palettes"):
        for number, rgb in numbers.items():
            other, place = first.setdefault(number, (rgb, mask))
            if other != rgb:
                return Palettes({}, (number, place, mask))
    return Palettes({number: rgb for number, (rgb, _) in first.items()})


def _palette(mask: Place) -> tuple[str, bytes] | None:
    """The palette as a file has it; nothing is decoded."""
    try:
        with Image.open(mask.file, formats=IMAGE_FORMATS) as image:
            return image.palette.getdata() if image.mode == "P" and image.palette else None
    except Exception:  # damaged: reported where it is read
        return None


def _numbered(used: bool, mask: Place) -> tuple[Place, dict[int, RGB]]:
    """The colour of each number of a mask with a palette, or of those that its pixels have."""
    image = open_image(mask.read(), mask)
    palette = image.getpalette() if image.mode == "P" else None
    colours = zip(*[iter(palette or ())] * 3, strict=True)
    numbers = set(np.unique(np.asarray(image)).tolist()) if used and palette else None
    return mask, {n: rgb for n, rgb in enumerate(colours) if numbers is None or n in numbers}


def write_draft(file: Path, rows: Sequence[Colour], unknown: Counter[RGB]) -> None:
    """Writes a colour table: the rows as they are, then unknown colours, most frequent first."""
    lines = [
        "# A colour table for --classes: a name and its colour a line. Replace the names colour_N;",
        "# lines of one name become one class; __ignore__ leaves pixels out.",
    ]
    named = [row for row in rows if row.rgb is not None]
    lines += map(_line, named)
    for number, (rgb, pixels) in enumerate(unknown.most_common(_MOST)):
        lines += [f"# {pixels:,} pixels", f"colour_{number} {rgb[0]} {rgb[1]} {rgb[2]}"]
    atomic_write(file, "".join(f"{line}\n" for line in lines).encode())


def write_table(file: Path, rows: Sequence[Colour]) -> None:
    """Writes a list of classes or a colour table that :func:`.tables.read_table` reads."""
    atomic_write(file, "".join(f"{_line(row)}\n" for row in rows).encode())


def _line(row: Colour) -> str:
    return " ".join((row.name, *map(str, row.rgb or ())))


def describe(unknown: Counter[RGB]) -> str:
    """The most frequent colours with their pixels, for a message."""
    first = ", ".join(f"{rgb} {pixels:,}" for rgb, pixels in unknown.most_common(_SHOWN))
    more = len(unknown) - _SHOWN
    return f"{first}{f' and {more:,} more' if more > 0 else ''}"
