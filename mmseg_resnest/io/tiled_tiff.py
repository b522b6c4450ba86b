# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Tiled TIFF files that OpenCV misreads, in a form that it reads.

Where the last column of tiles reaches beyond the image, OpenCV 5 mixes up the rows in it: of grey
images of 16 bits that it reduces to 8, and of grey ones with alpha. In images that are stored
mirrored it mixes up the tiles.

This module imports nothing of the package: processes that decode for a service load it alone.
"""

from __future__ import annotations

import io
import struct

_WIDTH, _BITS, _ORIENTATION, _SAMPLES, _TILE_WIDTH = 256, 258, 274, 277, 322
_MIRRORED = (2, 3, 6, 7)  # orientations whose rows begin at the right
_KEPT = (_WIDTH, _BITS, _ORIENTATION, _SAMPLES, _TILE_WIDTH)
_MOST_TAGS = 1000


def _tags(data: bytes) -> dict[int, int]:
    """The first value of some tags of a TIFF file's first directory; struct.error if it is cut."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return {}
    order, big = "<" if data[:2] == b"II" else ">", b"+" in data[:4]
    size, words = (8, "HHQ") if big else (4, "HHI")
    (start,) = struct.unpack_from(order + words[2], data, size)
    (number,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    place = start + (8 if big else 2)
    kinds = {3: "H", 4: "I", 16: "Q"}
    found: dict[int, int] = {}
    for _ in range(min(number, _MOST_TAGS)):
        tag, kind, count = struct.unpack_from(order + words, data, place)
        if tag in _KEPT and kind in kinds:
            value = place + 4 + size  # where values stand that fit, and else their place
            if count * struct.calcsize("=" + kinds[kind]) > size:
                (value,) = struct.unpack_from(order + words[2], data, value)
            (found[tag],) = struct.unpack_from(order + kinds[kind], data, value)
        place += 4 + 2 * size
    return found


def readable(data: bytes) -> bytes:
    """An image file as it is; one that OpenCV misreads as 8 bits, upright and in strips.

    Raises:
        ValueError: OpenCV misreads it and Pillow cannot read it.
    """
    try:
        tags = _tags(data)
    except (struct.error, OverflowError):  # damaged, which the decoder says
        return data
    tile, kind = tags.get(_TILE_WIDTH, 0), (tags.get(_SAMPLES, 1), tags.get(_BITS, 1))
    wrong = [(1, 16), (2, 8), (2, 16)] if tile and tags.get(_WIDTH, 0) % tile else []
    if tile and tags.get(_ORIENTATION) in _MIRRORED:
        wrong += [(1, 8), (3, 8), (1, 16), (2, 8)]
    if kind not in wrong:
        return data
    from PIL import Image

    strips = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()  # turned as the file says
            image.save(strips, "TIFF", compression="raw", exif=Image.Exif())
    except Exception as error:  # each of Pillow's plugins has its own kinds
        said = "damaged, or tiles that OpenCV misreads; save it in strips: "
        said += "gdal_translate -co TILED=NO OLD NEW"
        raise ValueError(said) from error
    return strips.getvalue()
