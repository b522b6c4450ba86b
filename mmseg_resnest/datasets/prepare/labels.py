# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Label maps as arrays and as files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageSequence, UnidentifiedImageError

from ...errors import UserError

Labels = npt.NDArray[np.uint8]

# Recognised by the content. Pillow has decoders for many more, which only a stranger might use.
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
_BANDS, _NODATA = 277, 42113  # tags: SamplesPerPixel, GDAL_NODATA
_NEAR, _TWO_VALUES = 32, 0.9  # grey levels, share of the pixels: a mask of 0 and 255 as JPEG


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
    except Image.DecompressionBombError as error:
        raise too_large(name, error) from error
    except Exception as error:  # Pillow's decoders raise whatever they please
        reason = str(error)
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is not one of {', '.join(IMAGE_FORMATS)}" if data else "it is empty"
            if data.startswith(b"version https://git-lfs"):
                reason = "it is a pointer of Git LFS; get the file itself: git lfs pull"
            if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                reason = "a TIFF of a kind that is not read here, such as 64 bits; save it as PNG"
        raise UserError("image", name, f"is not an image or is damaged ({reason})") from error
    return image


def too_large(name: object, error: Exception) -> UserError:
    """The error of an image that has more pixels than Pillow takes."""
    reason = str(error).partition(",")[0]
    return UserError("too-large", name, f"has too many pixels ({reason}); cut it into tiles")


def is_lossy(image: Image.Image, data: bytes) -> bool:
    """Whether an image file's compression changes values: JPEG, also in a TIFF, or lossy WebP."""
    if image.format == "TIFF":
        return str(image.info.get("compression")).endswith(("jpeg", "webp"))
    if image.format == "WEBP":
        place = 12
        while data[place : place + 4] not in (b"VP8 ", b"VP8L", b""):
            size = int.from_bytes(data[place + 4 : place + 8], "little")
            place += 8 + size + size % 2
        return data[place : place + 4] == b"VP8 "
    return image.format in ("JPEG", "MPO")  # several JPEGs in one file


def check_lossless(image: Image.Image, data: bytes, name: object) -> None:
    """Raise UserError for a mask that :func:`is_lossy`."""
    if is_lossy(image, data):
        message = f"is a lossy {image.format}, which changes labels; get a lossless file (PNG)"
        grey = np.asarray(image.convert("L"))
        if ((grey < _NEAR) | (grey > 255 - _NEAR)).mean() > _TWO_VALUES:
            message += ", or save it as PNG with 0 for what is up to 127 and 255 for the rest"
        raise UserError("label", name, message)


def check_pages(image: Image.Image, data: bytes, name: object) -> None:
    """Raise UserError for a mask of several pages or frames; overviews of a TIFF are none.

    Nor may a TIFF have bands that Pillow leaves out.
    """
    number, bands = getattr(image, "n_frames", 1), _tag(image, _BANDS)
    if bands > len(image.getbands()):
        message = (
            f"has {bands} bands, and a mask has one, or colours; save each as a file of its own"
        )
        raise UserError("label", name, message)
    if number > 1 and image.format == "TIFF":
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as file:
            tiff: Any = file
            number = sum(
                page.size == image.size and not tiff.tag_v2.get(254, 0) & 5
                for page in ImageSequence.Iterator(file)
            )
    if number > 1:
        message = f"has {number} pages or frames, and a mask is one; save each as a file of its own"
        raise UserError("label", name, message)


def _tag(image: Image.Image, number: int) -> Any:
    """The value of a tag of a TIFF file; 0 without it."""
    return getattr(image, "tag_v2", {}).get(number, 0)


def _without_data(image: Image.Image, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a GeoTIFF has no data, by its own word; 0 is a label."""
    try:
        value = float(str(_tag(image, _NODATA)).strip("\0 "))
    except ValueError:
        value = 0
    return np.isnan(values) if math.isnan(value) else (values == value) & (value != 0)


def numbers_in(image: Image.Image) -> npt.NDArray[Any] | None:
    """The label numbers (H, W) that an image holds; None if it has colours or transparent pixels.

    Colour images whose channels are equal hold numbers, too.
    """
    if image.mode in ("L", "P", "I", "I;16", "I;16B", "F"):
        return np.asarray(image)
    if image.mode not in ("RGB", "RGBA", "LA"):
        return None
    values = np.asarray(image)
    if image.mode in ("RGBA", "LA"):
        if values[..., -1].min(initial=255) < 255:
            return None
        values = values[..., :-1]
    return values[..., 0] if (values == values[..., :1]).all() else None


def indices(data: bytes, name: object) -> npt.NDArray[np.int64]:
    """The label numbers (H, W) of an image file, see :func:`numbers_in`, of any number of bits.

    Raises:
        UserError: It is another kind of image, or a value is no label number.
    """
    image = open_image(data, name)
    check_lossless(image, data, name)
    check_pages(image, data, name)
    bits = data[24] if image.format == "PNG" else 8
    if image.mode == "1" or (image.mode == "L" and bits < 8):  # Pillow spreads few bits over 0..255
        step = 255 // (2**bits - 1) if image.format == "PNG" else 255
        image = image.convert("L").point(lambda value: value // step)
    values = numbers_in(image)
    if values is None:
        message = f"has colours (mode {image.mode}), not label numbers; see --format colour"
        raise UserError("label", name, message)
    if bits == 16 and values.dtype == np.uint8:
        message = "has 16 bits in several channels, of which 8 can be read; save it as a grey image"
        raise UserError("label", name, message)
    if (nothing := _without_data(image, values)).any():
        values = np.where(nothing, 255, values)
    if values.dtype.kind in "if":
        bad = values[~((values >= 0) & (values == np.rint(values)) & (values < 1 << 31))]
        if bad.size:
            message = (
                f"holds {bad[0]}, which is not the number of a class; save ignored pixels as 255"
            )
            raise UserError("label", name, message)
    return values.astype(np.int64)


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
