# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""An image as the loading steps of a config give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..io.image_files import as_picture

__all__ = ["LoadedImage"]


@dataclass(frozen=True)
class LoadedImage:
    """An image as a config's loader gives it.

    Attributes:
        sample: What the loading steps made of it: ``img`` and its sizes.
        path: Where it came from, if from a file or an address.
        rgb: Whether the first three channels are red, green and blue, rather than the reverse; or
            the channels, from 0, that are shown so.
    """

    sample: Mapping[str, Any]
    path: str | None = None
    rgb: bool | tuple[int, ...] = False

    @property
    def pixels(self) -> NDArray[Any]:
        """(H, W) or (H, W, C), values and order of channels as the loader gives them."""
        return self.sample["img"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        shape = self.sample["ori_shape"]  # (Z, Y, X) of a volume
        height, width = shape[-2:] if self.pixels.ndim == 4 else shape[:2]
        return int(height), int(width)

    @property
    def picture(self) -> NDArray[np.uint8]:
        """(H, W, 3) RGB of uint8, for people to look at."""
        return as_picture(self.pixels, self.rgb)
