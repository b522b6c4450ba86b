# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""mmseg's colour jitter and packing under the stack's names, with fewer passes over the pixels."""

from __future__ import annotations

from typing import Any

import cv2
import mmseg.datasets.transforms
import numpy as np
import numpy.typing as npt
import torch
from mmengine.structures import PixelData
from numpy import random

from ..registry import TRANSFORMS

__all__ = ["PackSegInputs", "PhotoMetricDistortion", "contiguous"]


def contiguous(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same pixels in the usual order; a mirrored view is turned by OpenCV, which is quick."""
    if image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        if image.strides[1] < 0 < image.strides[0]:
            return cv2.flip(np.ascontiguousarray(image[:, ::-1]), 1)
        if image.strides[0] < 0 < image.strides[1]:
            return cv2.flip(np.ascontiguousarray(image[::-1]), 0)
    return np.ascontiguousarray(image)


def _planes(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(3, H, W), the channels of an image (H, W, 3)."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    return planes


def _mapped(image: npt.NDArray[np.uint8], table: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The values of an image (H, W, 3) as a table has them; a shift needs no table."""
    shift = int(table[128]) - 128
    if np.array_equal(table, np.clip(np.arange(256) + shift, 0, 255)):
        change: Any = cv2.subtract if shift < 0 else cv2.add
        shifted: npt.NDArray[np.uint8] = change(image, (abs(shift),) * 3 + (0,))
        return shifted
    return cv2.LUT(image, table).astype(np.uint8, copy=False)


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
        saturated = turned = None
        if random.randint(2):
            factor = random.uniform(self.saturation_lower, self.saturation_upper)
            saturated = self.convert(values, alpha=factor)
        if random.randint(2):
            turn = random.randint(-self.hue_delta, self.hue_delta)
            turned = values.copy()
            turned[:180] = (values[:180].astype(int) + turn) % 180
        after = values if contrast_first else self.contrast(values)

        image = contiguous(image)
        if saturated is not None or turned is not None:
            if before is not values:
                image = _mapped(image, before)
            changed = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            planes = _planes(changed)
            for plane, table in zip(planes, (turned, saturated), strict=False):
                if table is not None:
                    cv2.LUT(plane, table, dst=plane)
            image = cv2.cvtColor(cv2.merge(list(planes), dst=changed), cv2.COLOR_HSV2BGR)
            if after is not values:
                cv2.LUT(image, after, dst=image)
        elif before is not values or after is not values:
            image = _mapped(image, after[before])
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
        planes = _planes(contiguous(image))
        rest = {key: value for key, value in results.items() if key != "img"}
        labels: Any = rest.get("gt_seg_map")
        usual = getattr(labels, "dtype", None) == np.uint8 and labels.ndim == 2
        if usual:
            del rest["gt_seg_map"]
        packed: dict = super().transform(rest)
        if usual:
            numbers = torch.from_numpy(contiguous(labels)[None].astype(np.int64))
            packed["data_samples"].gt_sem_seg = PixelData(data=numbers)
        return {"inputs": torch.from_numpy(planes), **packed}
