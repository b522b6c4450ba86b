# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""mmseg's colour jitter and packing under the stack's names, with fewer passes over the pixels."""

from __future__ import annotations

from typing import Any

import cv2
import mmseg.datasets.transforms
import numpy as np
import numpy.typing as npt
import torch
from numpy import random

from ..registry import TRANSFORMS

__all__ = ["PackSegInputs", "PhotoMetricDistortion", "contiguous"]


def contiguous(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same pixels in the usual order; a mirrored view is turned by OpenCV, which is quick."""
    if image.ndim == 3 and image.dtype == np.uint8 and image.shape[2] == 3:
        if image.strides[1] < 0 < image.strides[0]:
            return cv2.flip(np.ascontiguousarray(image[:, ::-1]), 1)
        if image.strides[0] < 0 < image.strides[1]:
            return cv2.flip(np.ascontiguousarray(image[::-1]), 0)
    return np.ascontiguousarray(image)


@TRANSFORMS.register_module()
class PhotoMetricDistortion(mmseg.datasets.transforms.PhotoMetricDistortion):
    """mmseg's ``PhotoMetricDistortion``: brightness, contrast, saturation and hue at random.

    It draws the same numbers. Brightness and contrast, of which each 8-bit value becomes another,
    are one table; saturation and hue are changed between one conversion to HSV and one back, where
    the stack converts twice and rounds between.
    """

    def transform(self, results: dict) -> dict:
        """Changes ``results['img']`` (H, W, 3) BGR."""
        image = results["img"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            stock: dict = super().transform(results)
            return stock
        values = np.arange(256, dtype=np.uint8)
        before = self.brightness(values)
        contrast_first = random.randint(2) == 1
        if contrast_first:
            before = self.contrast(before)
        saturation = random.randint(2)
        if saturation:
            factor = random.uniform(self.saturation_lower, self.saturation_upper)
            saturated = self.convert(values, alpha=factor)
        hue = random.randint(2)
        if hue:
            turn = random.randint(-self.hue_delta, self.hue_delta)
        after = values if contrast_first else self.contrast(values)

        image = contiguous(image)
        if before is not values:
            image = cv2.LUT(image, before)
        if saturation or hue:
            table = np.stack([values] * 3, axis=1)
            if saturation:
                table[:, 1] = saturated
            if hue:
                table[:180, 0] = (values[:180].astype(int) + turn) % 180
            image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            image = cv2.LUT(image, table[None])
            image = cv2.cvtColor(image, cv2.COLOR_HSV2BGR)
        if after is not values:
            image = cv2.LUT(image, after)
        results["img"] = image
        return results


@TRANSFORMS.register_module()
class PackSegInputs(mmseg.datasets.transforms.PackSegInputs):
    """mmseg's ``PackSegInputs``; the colours of an 8-bit image are taken apart by OpenCV."""

    def transform(self, results: dict) -> dict:
        """Packs ``img`` as ``inputs`` (3, H, W) and the rest as ``data_samples``."""
        image = results.get("img")
        if image is None or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            stock: dict = super().transform(results)
            return stock
        planes = np.empty((3, *image.shape[:2]), np.uint8)
        source = contiguous(image)
        for i in range(3):
            cv2.extractChannel(source, i, planes[i])
        rest = {key: value for key, value in results.items() if key != "img"}
        packed: dict = super().transform(rest)
        return {"inputs": torch.from_numpy(planes), **packed}
