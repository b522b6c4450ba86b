# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Label maps as arrays and as files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import UserError

Labels = npt.NDArray[np.uint8]

# Recognised by the content. Pillow has decoders for many more, which only a stranger might use.
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")


def png(labels: Labels) -> bytes:
    """An 8-bit PNG, grey of a label map (H, W), which every reader takes for indices."""
    stream = io.BytesIO()
    Image.fromarray(labels).save(stream, "PNG")
    return stream.getvalue()


def open_image(data: bytes, name: object) -> Image.Image:
    """Decodes an image file.

    Raises:
        UserError: It is not an image or is damaged.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        image.load()
    except Exception as error:  # Pillow's decoders raise whatever they please
        raise UserError("image", name, f"is not an image or is damaged ({error})") from error
    return image


def indices(data: bytes, name: object) -> npt.NDArray[np.int64]:
    """The values of a grey or palette image file (H, W), 8-bit or 16-bit.

    Raises:
        UserError: It is another kind of image.
    """
    image = open_image(data, name)
    bits = data[24] if image.format == "PNG" and image.mode in ("1", "L") else 8
    if image.mode == "1" or bits < 8:  # Pillow spreads few bits over 0..255
        step = 255 // (2**bits - 1) if image.format == "PNG" else 255
        image = image.convert("L").point(lambda value: value // step)
    if image.mode not in ("L", "P", "I", "I;16", "I;16B"):
        message = f"has colours (mode {image.mode}), not label numbers; see --format colour"
        raise UserError("label", name, message)
    if image.format == "JPEG":
        message = "is a JPEG, which changes label numbers; get a lossless file"
        raise UserError("label", name, message)
    return np.asarray(image).astype(np.int64)


def bit_palette(size: int = 256) -> npt.NDArray[np.uint8]:
    """The palette of VOC's label files, (size, 3) RGB: a number's bits, dealt out in turn."""
    number = np.arange(size)
    palette = np.zeros((size, 3), dtype=np.int64)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return palette.astype(np.uint8)


def pack_colours(rgb: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """RGB (..., 3) as one number a pixel."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def colours_to_labels(
    rgb: npt.NDArray[np.uint8], table: Mapping[tuple[int, int, int], int], name: object
) -> Labels:
    """Label map (H, W) of a colour-coded image (H, W, 3), given the label of each colour.

    Raises:
        UserError: A colour is not in the table; says which, how often and where.
    """
    keys = pack_colours(np.array(list(table), dtype=np.uint8).reshape(-1, 3))
    order = np.argsort(keys)
    values = np.array(list(table.values()), dtype=np.uint8)[order]
    keys = keys[order]
    packed = pack_colours(rgb)
    position = np.minimum(np.searchsorted(keys, packed), len(keys) - 1)
    unknown = keys[position] != packed
    if unknown.any():
        y, x = (int(v) for v in np.argwhere(unknown)[0])
        others = len(np.unique(packed[unknown]))
        colour = tuple(int(v) for v in rgb[y, x])
        more = f" and {others - 1} other colours" if others > 1 else ""
        message = (
            f"colour {colour} at column {x}, row {y}{more} is not in the colour table"
            f" ({int(unknown.sum())} pixels); get the masks from before they were resized or"
            " saved as JPEG"
        )
        raise UserError("label", name, message)
    return values[position]


def map_values(
    values: npt.NDArray[np.int64], table: Mapping[int, int] | Sequence[int], name: object
) -> Labels:
    """Replaces every value by the table's; a sequence names values that stay as they are.

    Raises:
        UserError: A value is not in the table.
    """
    if not isinstance(table, Mapping):
        table = dict(zip(table, table, strict=True))
    # Counting takes an entry for every number up to the largest.
    few = not values.size or (values.min() >= 0 and values.max() <= 0xFFFF)
    found = (np.flatnonzero(np.bincount(values.ravel())) if few else np.unique(values)).tolist()
    unknown = [value for value in found if value not in table]
    if unknown:
        message = f"holds label {unknown[0]}, which is not one of the data set's"
        raise UserError("label", name, message)
    lookup = np.zeros(max(found, default=0) + 1, dtype=np.uint8)
    lookup[found] = [table[value] for value in found]
    return lookup[values]
