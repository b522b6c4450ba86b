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
                image = cv2.LUT(image, before)
            changed = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            plane = np.empty(changed.shape[:2], np.uint8)
            for channel, table in ((0, turned), (1, saturated)):
                if table is not None:  # a table for one channel is quicker than one for three
                    cv2.extractChannel(changed, channel, plane)
                    cv2.insertChannel(cv2.LUT(plane, table, dst=plane), changed, channel)
            image = cv2.cvtColor(changed, cv2.COLOR_HSV2BGR)
            if after is not values:
                cv2.LUT(image, after, dst=image)
        elif before is not values or after is not values:
            image = cv2.LUT(image, after[before])
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
        cv2.split(contiguous(image), list(planes))
        rest = {key: value for key, value in results.items() if key != "img"}
        labels = rest.get("gt_seg_map")
        usual = getattr(labels, "dtype", None) == np.uint8 and labels.ndim == 2
        if usual:
            del rest["gt_seg_map"]
        packed: dict = super().transform(rest)
        if usual:
            numbers = torch.from_numpy(contiguous(labels)[None].astype(np.int64))
            packed["data_samples"].gt_sem_seg = PixelData(data=numbers)
        return {"inputs": torch.from_numpy(planes), **packed}
