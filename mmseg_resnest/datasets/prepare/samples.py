# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What every form of labels has in common: samples, and the images that they name."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import UserError
from ...io.bands import npy_sizes
from ...io.image_files import IMAGE_SUFFIXES
from ...io.image_header import ImageHeader, read_header
from .labels import IMAGE_FORMATS, Labels, too_large
from .places import list_folder

IGNORED = 255
_NOT_PILLOWS = (".npy", ".tif", ".tiff", ".jp2", ".pgm", ".ppm")  # that Pillow may not open here
#: Of images to train on; masks are image files.
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
#: Of images that nothing here reads.
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".jxl", ".jpe", ".pbm", ".tga", ".dng")

# Renders a label map (H, W) from the label of each class name.
Render = Callable[[Mapping[str, int], int], Labels]


@dataclass(frozen=True)
class Sample:
    """One image and how its labels are made.

    Attributes:
        name: Path without suffix, with forward slashes.
        image: The image file, or its content.
        render: Returns the label map (H, W), given the label of each name and the label of
            pixels that no shape covers; a ``partial``, so that it has a fingerprint.
        names: The class names that occur, where the form tells without decoding pixels.
        suffix: Of the image's file name.
    """

    name: str
    image: Path | bytes
    render: Render
    names: frozenset[str]
    suffix: str


def image_size(image: Path | bytes, name: object, like: object = None) -> tuple[int, int]:
    """Height and width as training sees them: after the rotation that the file's EXIF asks for.

    An array of three axes may be (H, W, bands) or (bands, H, W): it has the size ``like``, where
    it can have that, and else more pixels along its edges than bands.

    Raises:
        UserError: It is not an image.
    """
    try:
        source = io.BytesIO(image) if isinstance(image, bytes) else image
        with Image.open(source, formats=IMAGE_FORMATS) as opened:
            width, height = opened.size
            if opened.format == "TIFF":  # of which Pillow may say the size of the turned image
                tags: Any = opened
                width, height = tags.tag_v2[256], tags.tag_v2[257]
            turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:  # Pillow's decoders raise whatever they please
        if not isinstance(image, bytes) and (header := _header(image)) is not None:
            guess = header.height, header.width
            sizes = npy_sizes(image) if like is not None and header.format == "NPY" else ()
            return next((size for size in sizes if size == like), guess)
        if isinstance(error, Image.DecompressionBombError):
            raise too_large(name, error) from error
        kinds = " or ".join(IMAGE_FORMATS)
        message = f"is not an image or is damaged ({error}); it must be {kinds}"
        raise UserError("image", name, message) from error
    return (width, height) if turned else (height, width)


def edge(value: Any) -> Any:
    """The length of an edge in an annotation; some tools write it as text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def is_turned(image: Path, size: tuple[int, int]) -> bool:
    """Whether an image has its height and width by the rotation that its EXIF asks for alone."""
    header = read_header(image, str(image))
    return header is not None and (header.height, header.width) != size


def _header(image: Path) -> ImageHeader | None:
    """What a file of a kind that Pillow may not open says of itself."""
    if image.suffix.lower() not in _NOT_PILLOWS:
        return None
    try:
        header = read_header(image, str(image))
    except (OSError, UserError):
        return None
    formats = ("NPY", "TIFF", "PPM", "JPEG2000")
    return header if header is not None and header.format in formats else None


def check_image(file: Path) -> None:
    """Make sure that a file is an image, whatever its name says; raises UserError."""
    image_size(file, file)


def json_files(source: Path) -> list[Path]:
    """The JSON files of a source: itself, or those of the folder."""
    if source.is_file():
        return [source]
    return [place.file for place in list_folder(source) if place.name.lower().endswith(".json")]


def composed(name: str) -> str:
    """A name in which a letter and its accent are one character; macOS writes them as two."""
    return unicodedata.normalize("NFC", name)


def common_end(names: Collection[str]) -> str:
    """What all names end in."""
    end = min(names, key=len, default="")
    while not all(name.endswith(end) for name in names):
        end = end[1:]
    return end


def speller(names: Collection[str]) -> Callable[[str], str]:
    """A function that spells a name as one of ``names`` does, in which accents may be two ways.

    Other names it leaves as they are.
    """
    known = {composed(name): name for name in names}
    return lambda name: name if name in names else known.get(composed(name), name)


def find_image(candidates: Iterable[Path]) -> Path | None:
    """The first of some files that is there and is named as an image.

    A candidate whose name does not end as an image's stands for those with each such ending.
    Its accents may be spelled in either way, see :func:`composed`.
    """
    for candidate in candidates:
        forms = [Path(unicodedata.normalize(form, str(candidate))) for form in ("NFC", "NFD")]
        for path in dict.fromkeys((candidate, *forms)):
            end = path.suffix  # file systems elsewhere do not tell cases apart
            others = _with_ends(path, PICTURE_SUFFIXES)
            if end.lower() in PICTURE_SUFFIXES:
                others = [path.with_suffix(one) for one in (end, end.lower(), end.upper())]
            if found := next(filter(_is_file, others), None):
                return found
    return None


def unread(candidates: Iterable[Path]) -> Path | None:
    """The first of some files that is there, if as an image of a kind that is not read.

    A candidate may have an image's ending or none, as in :func:`find_image`.
    """
    for candidate in candidates:
        named = candidate.suffix.lower() in UNREAD_SUFFIXES
        others = _with_ends(candidate.with_suffix("") if named else candidate, UNREAD_SUFFIXES)
        if found := next(filter(_is_file, others), None):
            return found
    return None


def _with_ends(stem: Path, ends: Sequence[str]) -> list[Path]:
    return [stem.with_name(stem.name + end) for end in (*ends, *(e.upper() for e in ends))]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
