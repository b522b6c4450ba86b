# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Outlines become label maps again, by COCO's own tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask


def rasterize(
    polygons: Sequence[tuple[int, Sequence[Any]]], height: int, width: int, fill: int = 255
) -> NDArray[np.int64]:
    """The map of values, each with its rings; rings in rings are holes; the rest is ``fill``."""
    result = np.full((height, width), fill, np.int64)
    for value, rings in polygons:
        flat = [np.reshape(ring, -1).astype(np.float64).tolist() for ring in rings]
        layers = np.asarray(mask.decode(mask.frPyObjects(flat, height, width)))
        result[layers.sum(axis=2) % 2 == 1] = value
    return result
