# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""mmseg's colour jitter, mirroring and packing under the stack's names, with less work."""

from __future__ import annotations

import bisect
import itertools
from typing import Any

import cv2
import mmcv.transforms
import mmseg.datasets.transforms
import numpy as np
import numpy.typing as npt
import torch
from mmcv.transforms.utils import cache_randomness
from mmengine.structures import PixelData
from numpy import random

from ..kernels.compiled import loaded_loops
from ..registry import TRANSFORMS

__all__ = [
    "PackSegInputs",
    "PhotoMetricDistortion",
    "RandomFlip",
    "compile_pipeline",
    "contiguous",
]

Bytes = npt.NDArray[np.uint8]


def contiguous(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same pixels in the usual order; a mirrored view is turned by OpenCV, which is quick."""
    if image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        if image.strides[1] < 0 < image.strides[0]:
            return cv2.flip(image[:, ::-1], 1)
        if image.strides[0] < 0 < image.strides[1]:
            return cv2.flip(image[::-1], 0)
        if image.ndim == 3 and _is_planar(image):
            return cv2.merge(list(image.transpose(2, 0, 1)))
    return np.ascontiguousarray(image)


def _is_planar(image: Bytes) -> bool:
    """Whether the channels of an image (H, W, 3) lie one after the other."""
    return image.transpose(2, 0, 1).flags.c_contiguous


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
        shifted: Bytes = change(image, (abs(shift),) * 3 + (0,))
        return shifted
    return cv2.LUT(image, table).astype(np.uint8, copy=False)


@TRANSFORMS.register_module()
class PhotoMetricDistortion(mmseg.datasets.transforms.PhotoMetricDistortion):
    """mmseg's ``PhotoMetricDistortion``: brightness, contrast, saturation and hue at random.

    It draws the same numbers. Brightness and contrast, of which each 8-bit value becomes another,
    are one table.

    Args:
        *args: As of mmseg's.
        planar: Whether blue, green and red may lie one after the other in memory, as
            ``PackSegInputs`` wants them: the result is then a view (H, W, 3) that is not
            contiguous. Training sets it where that step follows.
        **kwargs: As of mmseg's.

    Attributes:
        compiled: Whether hue and saturation are changed by compiled loops, where ``planar`` is set
            and the process has loaded them. Some rows' last pixels are rounded in another way, so
            that a run has to do it from its first sample to its last, or not at all.
    """

    compiled = False

    def __init__(self, *args: Any, planar: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.planar = planar

    def transform(self, results: dict) -> dict:
        """Changes ``results['img']`` (H, W, 3) BGR."""
        image = results["img"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            stock: dict = super().transform(results)
            return stock
        values = np.arange(256, dtype=np.uint8)
        before = self.brightness(values)
        contrast_first = random.randint(2) == 1
        contrast = self._draw(self.contrast_lower, self.contrast_upper) if contrast_first else None
        if contrast is not None:
            before = self.convert(before, alpha=contrast)
            contrast = None
        factor = self._draw(self.saturation_lower, self.saturation_upper)
        turn = random.randint(-self.hue_delta, self.hue_delta) if random.randint(2) else None
        if not contrast_first:
            contrast = self._draw(self.contrast_lower, self.contrast_upper)
        after = values if contrast is None else self.convert(values, alpha=contrast)

        image = contiguous(image)
        if factor is not None or turn is not None:
            if before is not values:
                image = _mapped(image, before)
            if factor is not None and turn is not None:
                # Two conversions, as the stack's: each rounds to one of 180 hues.
                image = contiguous(self._change(image, factor, None, None, values))
                factor = None
            image = self._change(image, factor, turn, contrast, after)
        elif before is not values or after is not values:
            image = _mapped(image, after[before])
        results["img"] = image
        return results

    @staticmethod
    def _draw(lower: float, upper: float) -> float | None:
        """Every other time a number between these."""
        return random.uniform(lower, upper) if random.randint(2) else None

    def _change(
        self,
        image: Bytes,
        factor: float | None,
        turn: int | None,
        contrast: float | None,
        after: Bytes,
    ) -> Bytes:
        """Saturation times ``factor``, hue plus ``turn``, then the contrast, whose table there is.

        Args:
            image: (H, W, 3) BGR, contiguous.
            factor: None leaves the saturation.
            turn: In steps of 2 degrees; None leaves the hue.
            contrast: None leaves it.
            after: (256,), what the contrast makes of each value.
        """
        changed: Any = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        planes = _planes(changed)
        loops = loaded_loops() if self.planar and self.compiled else None
        numbers = [1.0 if number is None else number for number in (factor, contrast)]
        if loops is not None and min(numbers) >= 0:
            loops.change_colours(planes, turn or 0, *numbers)
            return planes.transpose(1, 2, 0)
        if turn is not None:
            table = np.arange(256, dtype=np.uint8)
            table[:180] = (np.arange(180) + turn) % 180
            cv2.LUT(planes[0], table, dst=planes[0])
        if factor is not None:
            table = self.convert(np.arange(256, dtype=np.uint8), alpha=factor)
            cv2.LUT(planes[1], table, dst=planes[1])
        back: Any = cv2.cvtColor(cv2.merge(list(planes), dst=changed), cv2.COLOR_HSV2BGR)
        if contrast is not None:
            cv2.LUT(back, after, dst=back)
        return back


def compile_pipeline(dataset: Any) -> None:
    """Have the colour jitter of a data set, or of those that it is made of, use compiled loops.

    Args:
        dataset: Has ``pipeline.transforms``, or holds others as ``dataset`` or ``datasets``.
    """
    for step in getattr(getattr(dataset, "pipeline", None), "transforms", ()):
        if isinstance(step, PhotoMetricDistortion):
            step.compiled = True
    for held in (getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())):
        if held is not None:
            compile_pipeline(held)


@TRANSFORMS.register_module()
class RandomFlip(mmcv.transforms.RandomFlip):
    """mmcv's ``RandomFlip``; it draws the same numbers, without making arrays for them."""

    @cache_randomness
    def _choose_direction(self) -> str | None:
        directions = [self.direction] if isinstance(self.direction, str) else [*self.direction]
        if isinstance(self.prob, list):
            shares = [*self.prob, 1 - sum(self.prob)]
        else:
            shares = [self.prob / len(directions)] * len(directions) + [1.0 - self.prob]
        # As numpy.random.choice: one number, looked up in the sums of the shares.
        sums = list(itertools.accumulate(shares))
        place = bisect.bisect_right([value / sums[-1] for value in sums], random.random_sample())
        return [*directions, None][place]


@TRANSFORMS.register_module()
class PackSegInputs(mmseg.datasets.transforms.PackSegInputs):
    """mmseg's ``PackSegInputs``; the colours of an 8-bit image are taken apart by OpenCV."""

    def transform(self, results: dict) -> dict:
        """Packs ``img`` as ``inputs`` (3, H, W) and the rest as ``data_samples``."""
        image = results.get("img")
        if image is None or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            stock: dict = super().transform(results)
            return stock
        planar = _is_planar(image) and image.flags.writeable
        planes = image.transpose(2, 0, 1) if planar else _planes(contiguous(image))
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
