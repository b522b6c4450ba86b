# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""mmseg's colour jitter and packing under the stack's names, with less work."""

from __future__ import annotations

from typing import Any

import cv2
import mmseg.datasets.transforms
import numpy as np
import numpy.typing as npt
import torch
from mmengine.structures import PixelData
from numpy import random

from ...registry import TRANSFORMS
from .colour import require_bytes
from .multilabel import PLANES, bits_keys, label_planes

Bytes = npt.NDArray[np.uint8]


def contiguous(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same pixels in the usual order; OpenCV copies a mirrored view faster than NumPy."""
    if image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        if image.strides[1] < 0 < image.strides[0]:
            return cv2.flip(image[:, ::-1], 1)
        if image.strides[0] < 0 < image.strides[1]:
            return cv2.flip(image[::-1], 0)
    return np.ascontiguousarray(image)


def _planes(image: Bytes) -> Bytes:
    """(3, H, W), the channels of an image (H, W, 3)."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))
    return planes


def _mapped(image: Bytes, table: Bytes) -> Bytes:
    """The values of an image (H, W, 3) as a table has them; a shift needs no table."""
    shift = int(table[128]) - 128
    if np.array_equal(table, np.clip(np.arange(256) + shift, 0, 255)):
        change: Any = cv2.subtract if shift < 0 else cv2.add
        return change(image, (abs(shift),) * 3 + (0,))
    return cv2.LUT(image, table).astype(np.uint8, copy=False)


@TRANSFORMS.register_module()
class PhotoMetricDistortion(mmseg.datasets.transforms.PhotoMetricDistortion):
    """mmseg's ``PhotoMetricDistortion``: brightness, contrast, saturation and hue at random.

    It draws the same numbers and gives the same pixels. Brightness and contrast, which map each
    8-bit value to another, are one table. ``planar`` has no effect; configs of earlier runs set it.

    Raises:
        UserError: The image is not 8-bit in three channels.
    """

    def __init__(self, *args: Any, planar: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def transform(self, results: dict) -> dict:
        """Changes ``results['img']`` (H, W, 3) BGR."""
        image = results["img"]
        require_bytes(image, self, channels=3)
        values = np.arange(256, dtype=np.uint8)
        before = self.brightness(values)
        contrast_first = random.randint(2) == 1
        contrast = self._draw(self.contrast_lower, self.contrast_upper) if contrast_first else None
        if contrast is not None:
            before = self.convert(before, alpha=contrast)
        factor = self._draw(self.saturation_lower, self.saturation_upper)
        turn = random.randint(-self.hue_delta, self.hue_delta) if random.randint(2) else None
        after = values
        if not contrast_first:
            contrast = self._draw(self.contrast_lower, self.contrast_upper)
            after = values if contrast is None else self.convert(values, alpha=contrast)

        image = contiguous(image)
        if factor is not None or turn is not None:
            if before is not values:
                image = _mapped(image, before)
            if factor is not None and turn is not None:
                # Two conversions, as the stack's: each rounds to one of 180 hues.
                image = self._change_colours(image, factor, None)
                factor = None
            image = self._change_colours(image, factor, turn)
            if after is not values:
                image = cv2.LUT(image, after, dst=image)
        elif before is not values or after is not values:
            image = _mapped(image, after[before])
        results["img"] = image
        return results

    @staticmethod
    def _draw(lower: float, upper: float) -> float | None:
        """Every other time a number between these."""
        return random.uniform(lower, upper) if random.randint(2) else None

    def _change_colours(self, image: Bytes, factor: float | None, turn: int | None) -> Any:
        """Saturation times ``factor`` and hue plus ``turn`` (2 degrees each); None: unchanged."""
        changed: Any = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        planes = _planes(changed)
        if turn is not None:
            table = np.arange(256, dtype=np.uint8)
            table[:180] = (np.arange(180) + turn) % 180
            cv2.LUT(planes[0], table, dst=planes[0])
        if factor is not None:
            table = self.convert(np.arange(256, dtype=np.uint8), alpha=factor)
            cv2.LUT(planes[1], table, dst=planes[1])
        return cv2.cvtColor(cv2.merge(list(planes), dst=changed), cv2.COLOR_HSV2BGR)


@TRANSFORMS.register_module()
class PackSegInputs(mmseg.datasets.transforms.PackSegInputs):
    """mmseg's ``PackSegInputs``; the colours of an 8-bit image are taken apart by OpenCV.

    Labels that :class:`~.multilabel.LoadMultilabel` loaded become ``gt_sem_seg`` (C, H, W), uint8,
    of 0, 1 and 255 (ignored).
    """

    def transform(self, results: dict) -> dict:
        """Packs ``img`` as ``inputs`` (3, H, W) and the rest as ``data_samples``."""
        packed: dict
        classes = results.get(PLANES)
        if classes is not None:
            rest = {k: v for k, v in results.items() if k not in (PLANES, *bits_keys(classes))}
            packed = self.transform(rest)
            masks = torch.from_numpy(label_planes(results))
            packed["data_samples"].gt_sem_seg = PixelData(data=masks)
            return packed
        image = results.get("img")
        if image is None or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            return super().transform(results)
        planes = _planes(contiguous(image))
        rest = {key: value for key, value in results.items() if key != "img"}
        labels: Any = rest.get("gt_seg_map")
        usual = getattr(labels, "dtype", None) == np.uint8 and labels.ndim == 2
        if usual:
            del rest["gt_seg_map"]
        packed = super().transform(rest)
        if usual:
            numbers = torch.from_numpy(contiguous(labels)[None].astype(np.int64))
            packed["data_samples"].gt_sem_seg = PixelData(data=numbers)
        return {"inputs": torch.from_numpy(planes), **packed}
