# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Loading images of any number of bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from ...errors import UserError
from ...io.bands import LAYOUTS, MAX_BANDS, BandOptions
from ...io.image_files import Decoding
from ...registry import TRANSFORMS
from .loading import image_error


@TRANSFORMS.register_module()
class LoadBands(BaseTransform):
    """Loads the bands of a TIFF or a ``.npy`` file, float32, in place of ``LoadImageFromFile``.

    The bands of a TIFF are its samples, or else its pages of one size. ``.npy`` files are never
    unpickled. Values stay what they are; ``model.data_preprocessor`` normalises them.

    Args:
        bands: Numbers of the bands to take, in this order; the first band is 1, as in GDAL. None
            takes all.
        layout: The axes of ``.npy`` files: ``HWC`` or ``CHW``. A TIFF says it itself.
        nodata: The value that stands for no data; None takes the tag GDAL_NODATA of a TIFF.
        fill: What such values, and those that are not finite, become: one value, or one for each
            band that is taken. With the means, they are 0 once normalised.
        picture: Three of the taken bands to show as red, green and blue, numbered as in ``bands``;
            None shows the first three, or the first one in grey.

    Raises:
        UserError: An argument is not accepted; or a file is missing, damaged, of another format or
            lacks a band.
    """

    def __init__(
        self,
        bands: Sequence[int] | None = None,
        layout: str = "HWC",
        nodata: float | None = None,
        fill: float | Sequence[float] = 0.0,
        picture: Sequence[int] | None = None,
    ) -> None:
        _check_bands("bands", bands)
        _check_bands("picture", picture, 3)
        if layout not in LAYOUTS:
            _refuse("layout", layout, f"one of {', '.join(LAYOUTS)}")
        if nodata is not None and not _is_number(nodata):
            _refuse("nodata", nodata, "a number or None")
        several = isinstance(fill, Sequence) and not isinstance(fill, str)
        if not (all(map(_is_finite, fill)) if several else _is_finite(fill)):  # type: ignore[arg-type]
            _refuse("fill", fill, "a number, or one for each band")
        if several and bands is not None and len(fill) != len(bands):  # type: ignore[arg-type]
            _refuse("fill", fill, f"one number, or one for each of the {len(bands)} bands")
        if picture is not None and bands is not None and not set(picture) <= set(bands):
            _refuse("picture", picture, f"three of the bands {list(bands)}")
        self.options = BandOptions(
            None if bands is None else tuple(bands),
            layout,
            nodata,
            tuple(fill) if several else fill,  # type: ignore[arg-type]
        )
        self.picture = None if picture is None else tuple(picture)
        #: From the bytes of a file to its pixels.
        self.decoding = Decoding(self.options.as_text(), "bands")

    @property
    def shown(self) -> tuple[int, ...] | None:
        """The channels of ``img``, from 0, that are shown as red, green and blue."""
        if self.picture is None:
            return None
        bands = self.options.bands
        return tuple(band - 1 if bands is None else bands.index(band) for band in self.picture)

    def describe(self) -> dict[str, Any]:
        """The arguments, as plain data."""
        bands, layout, nodata, fill = self.options
        return {
            "bands": None if bands is None else list(bands),
            "layout": layout,
            "nodata": nodata,
            "fill": list(fill) if isinstance(fill, tuple) else fill,
            "picture": None if self.picture is None else list(self.picture),
        }

    def transform(self, results: dict) -> dict:
        """Sets ``img`` (H, W, bands) float32, ``img_shape`` and ``ori_shape`` of ``img_path``."""
        try:
            return self.load(results)
        except (MemoryError, UserError):
            raise
        except Exception as error:
            raise image_error(results, error) from error

    def load(self, results: dict) -> dict:
        """As :meth:`transform`, with the errors of the library that decodes."""
        with open(results["img_path"], "rb") as file:
            pixels = self.decoding(file.read())
        if self.shown is not None and max(self.shown) >= pixels.shape[2]:
            raise ValueError(f"has {pixels.shape[2]} bands, and picture is {self.picture}")
        results["img"] = pixels
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.describe().items())
        return f"{type(self).__name__}({arguments})"


def _check_bands(name: str, bands: Any, number: int | None = None) -> None:
    good = bands is None or (
        isinstance(bands, Sequence)
        and not isinstance(bands, str)
        and len(bands) > 0
        and all(type(band) is int and 1 <= band <= MAX_BANDS for band in bands)
        and number in (None, len(bands))
    )
    if not good:
        wanted = f"{number or 'a list of'} numbers of bands from 1, e.g. [3, 2, 1], or None"
        _refuse(name, bands, wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and bool(np.isfinite(value))


def _refuse(name: str, value: Any, wanted: str) -> None:
    raise UserError(
        "config-value", f"LoadBands argument {name}", f"must be {wanted}, not {value!r}"
    )
