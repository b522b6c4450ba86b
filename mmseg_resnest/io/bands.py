# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Images of any number of bands: TIFF and NumPy's ``.npy`` to (H, W, bands), float32.

This module imports nothing of the package: processes that decode for a service load it alone.
"""

from __future__ import annotations

import io
import json
import math
import os
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.lib import format as npy
from numpy.typing import NDArray

#: What a file may declare: bands, and bytes of all its values.
MAX_BANDS = 1024
MAX_BYTES = 8 << 30
LAYOUTS = ("HWC", "CHW")
_MOST_RATIO = 1100  # deflate packs 1032 equal bytes into one
_MOST_HEADER = 4096  # characters of a .npy header; NumPy writes some hundred
_NPY = b"\x93NUMPY"
_NODATA = 42113  # the tag GDAL_NODATA, a text


class BandOptions(NamedTuple):
    """How bands are read.

    Attributes:
        bands: Those to take, in this order; numbered from 1, as GDAL does. None takes all.
        layout: Axes of a ``.npy`` file: ``HWC`` or ``CHW``. A TIFF says it itself.
        nodata: The value that stands for no data; None takes the tag GDAL_NODATA of a TIFF.
        fill: What such values, and those that are not finite, become: one value, or one for each
            band that is taken.
    """

    bands: tuple[int, ...] | None = None
    layout: str = "HWC"
    nodata: float | None = None
    fill: float | tuple[float, ...] = 0.0

    def as_text(self) -> str:
        """As JSON."""
        return json.dumps(self._asdict())

    @classmethod
    def of_text(cls, text: str) -> BandOptions:
        """Of what :meth:`as_text` returned."""
        values = json.loads(text)
        for key in ("bands", "fill"):
            if isinstance(values[key], list):
                values[key] = tuple(values[key])
        return cls(**values)


def decode_bands(data: bytes, options: BandOptions) -> NDArray[np.float32]:
    """The bands of a TIFF or ``.npy`` file.

    The bands of a TIFF are the samples of its first page, or else its pages of the same size
    (overviews and masks do not count). A ``.npy`` file is never unpickled.

    Returns:
        (H, W, bands), float32; values without data are ``fill``.

    Raises:
        ValueError: It is no such file, declares too much, or lacks a band.
    """
    if data.startswith(_NPY):
        values, nodata = _read_npy(data, options.layout), None
    else:
        values, nodata = _read_tiff(data)
    bands = values.shape[2]
    if options.bands is not None:
        missing = [band for band in options.bands if not 1 <= band <= bands]
        if missing:
            raise ValueError(f"has no band {missing[0]}; its bands are 1 to {bands}")
        values = values[:, :, [band - 1 for band in options.bands]]
    nodata = nodata if options.nodata is None else options.nodata
    with np.errstate(over="ignore"):  # a value beyond the type is infinite, and has no data
        pixels = np.array(values, np.float32, order="C")
        known = np.isfinite(pixels)
        if nodata is not None:  # as a value of the file has it
            known &= values != (values.dtype.type(nodata) if values.dtype.kind == "f" else nodata)
    if not known.all():
        fill = np.asarray(options.fill, np.float32)
        if fill.ndim and len(fill) != pixels.shape[2]:
            raise ValueError(f"has {pixels.shape[2]} bands, and fill has {len(fill)} values")
        pixels = np.where(known, pixels, fill)
    return pixels


def npy_shape(data: bytes) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, type, whether columns come first, and where the values begin, of a ``.npy`` file.

    Args:
        data: The file, or its first bytes.

    Raises:
        ValueError: It is of another kind, or holds Python objects.
    """
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"is a .npy file of version {'.'.join(map(str, version))}; save it again")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, kind = read(file, max_header_size=_MOST_HEADER)
    if kind.kind not in "uif":
        raise ValueError(f"holds {kind}; bands are integers or floating-point numbers")
    return shape, kind, fortran, file.tell()


def _check_claim(shape: tuple[int, ...], itemsize: int, bands: int, size: int) -> None:
    if not math.prod(shape):
        raise ValueError("holds no pixel")
    if bands > MAX_BANDS:
        raise ValueError(
            f"has {bands:,} bands, more than {MAX_BANDS:,}; is its layout another one?"
        )
    claimed = math.prod(shape) * itemsize
    if claimed > min(MAX_BYTES, size):
        raise ValueError(f"declares {claimed:,} bytes of values, and cannot hold them")


def _read_npy(data: bytes, layout: str) -> NDArray[Any]:
    shape, kind, fortran, start = npy_shape(data)
    if len(shape) not in (2, 3):
        raise ValueError(f"has {len(shape)} axes; images have 2 or 3")
    channels_first = len(shape) == 3 and layout == "CHW"
    bands = 1 if len(shape) == 2 else shape[0 if channels_first else 2]
    _check_claim(shape, kind.itemsize, bands, len(data) - start)
    flat = np.frombuffer(data, kind, math.prod(shape), start)
    values = flat.reshape(shape, order="F" if fortran else "C")
    if len(shape) == 2:
        return values[:, :, None]
    return np.moveaxis(values, 0, 2) if channels_first else values


def _read_tiff(data: bytes) -> tuple[NDArray[Any], float | None]:
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            first: Any = file.pages.first
            pages = [first] if first.samplesperpixel > 1 else _alike(file, first)
            kind = np.dtype(first.dtype)
            if kind.kind not in "uifb":
                raise ValueError(f"holds {kind}; bands are integers or floating-point numbers")
            bands = first.samplesperpixel if len(pages) == 1 else len(pages)
            shape = (first.imagelength, first.imagewidth, bands)
            _check_claim(shape, kind.itemsize, bands, len(data) * _MOST_RATIO)
            values = [np.asarray(page.asarray(maxworkers=1)) for page in pages]
            tag = first.tags.get(_NODATA)
            separate = first.samplesperpixel > 1 and int(first.planarconfig) == 2
    except (tifffile.TiffFileError, KeyError) as error:
        raise ValueError(_explained(error)) from error
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise ValueError(_explained(error)) from error
    nodata = None
    if tag is not None:
        try:
            nodata = float(str(tag.value).strip("\0 "))
        except ValueError:
            nodata = None
    array = values[0] if len(values) == 1 else np.stack(values, axis=-1)
    array = array[:, :, None] if array.ndim == 2 else array
    array = np.moveaxis(array, 0, 2) if separate and array.ndim == 3 else array
    if array.shape != shape:
        raise ValueError(f"has an image of shape {array.shape}, and declares {shape}")
    return array, nodata


def tiff_kind(source: str | os.PathLike[str] | bytes) -> tuple[int, bool] | None:
    """How many bands a TIFF file has, and whether it is a photo, by its header; None for another.

    A photo has 8 bits (or 1 of a grey one) and a page that is grey, RGB or RGB with alpha.
    """
    try:
        opened: Any = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
        with tifffile.TiffFile(opened) as file:
            first: Any = file.pages.first
            kind, samples = str(np.dtype(first.dtype)), int(first.samplesperpixel)
            if samples == 1:
                pages = len(_alike(file, first))
                return pages, pages == 1 and kind in ("uint8", "bool")
            # A fourth sample that is said to be no alpha is a band, such as near infrared.
            alpha = samples == 4 and 0 not in first.extrasamples
            return samples, kind == "uint8" and (samples == 3 or alpha)
    except Exception:  # whatever a damaged file leads to; who reads it says so
        return None


def count_bands(path: str | os.PathLike[str], layout: str = "HWC") -> int | None:
    """How many bands a TIFF or ``.npy`` image has, by its header; None for another file."""
    try:
        with open(path, "rb") as file:
            head = file.read(_MOST_HEADER + 16)
    except OSError:  # who reads it says so
        return None
    if not head.startswith(_NPY):
        kind = tiff_kind(path)
        return None if kind is None else kind[0]
    try:
        shape = npy_shape(head)[0]
    except ValueError:
        return None
    if len(shape) == 3:
        return shape[0 if layout == "CHW" else 2]
    return 1 if len(shape) == 2 else None


def npy_sizes(path: str | os.PathLike[str]) -> list[tuple[int, int]]:
    """Height and width of a ``.npy`` image, by its header: in either layout, if it has three axes.

    Empty for another file.
    """
    try:
        with open(path, "rb") as file:
            shape = npy_shape(file.read(_MOST_HEADER + 16))[0]
    except (OSError, ValueError):
        return []
    return [(a, b) for a, b in (shape[:2], shape[-2:])] if len(shape) in (2, 3) else []


def _alike(file: tifffile.TiffFile, first: Any) -> list[Any]:
    """The pages of one sample that have the first one's size; not its overviews and masks."""
    found = []
    for number, page in enumerate(file.pages):
        if number >= MAX_BANDS:
            raise ValueError(f"has more than {MAX_BANDS:,} pages")
        full: Any = page.aspage() if hasattr(page, "aspage") else page
        if full.shape == first.shape and full.dtype == first.dtype and not full.subfiletype & 5:
            found.append(full)
    return found or [first]


def _explained(error: Exception) -> str:
    text = str(error).strip("'\"")
    if "imagecodecs" in text:
        text += "; or save it without compression or with deflate, and without the predictor of "
        text += "floating-point numbers"
    return text
