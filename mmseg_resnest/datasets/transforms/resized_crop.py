# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Random resize and crop as one step, which computes the pixels of the crop alone.

A crop of an enlarged image shows a small part of it, and one of a reduced image is made from few of
its pixels: the rest of the resized image, which the stack computes and throws away, is never made.
Both classes draw the same numbers in the same order as the transforms that they replace, so that
the same seed gives the same sample.
"""

from __future__ import annotations

from typing import Any

import cv2
import mmcv
import mmcv.transforms
import mmseg.datasets.transforms
import numpy as np
import numpy.typing as npt
from mmcv.transforms.utils import cache_randomness

from ...errors import UserError
from ...registry import TRANSFORMS
from .geometry import TakesLists, as_tuples, padded
from .long_edge import RandomLongEdgeResize
from .resample import Box, labels_part, pillow_labels_part, pillow_part, resized_part


def _draw_box(height: int, width: int, crop_size: tuple[int, int]) -> Box:
    """Where the crop lies in an image; numbers are drawn as mmseg's ``RandomCrop`` draws them."""
    top = np.random.randint(0, max(height - crop_size[0], 0) + 1)
    left = np.random.randint(0, max(width - crop_size[1], 0) + 1)
    return top, min(top + crop_size[0], height), left, min(left + crop_size[1], width)


def is_dominated(labels: npt.NDArray[Any], limit: float, ignore_index: int = 255) -> bool:
    """Whether one class has ``limit`` or more of the labelled pixels, or there is but one class."""
    if labels.dtype == np.uint8 and labels.size < 2**24:  # beyond, its float32 may not be exact
        counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()
    else:
        counts = np.bincount(labels.ravel(), minlength=256)
    if 0 <= ignore_index < len(counts):
        counts[ignore_index] = 0
    return bool(np.count_nonzero(counts) < 2 or counts.max() / counts.sum(dtype=float) >= limit)


@TRANSFORMS.register_module()
class RandomCrop(TakesLists, mmseg.datasets.transforms.RandomCrop):
    """mmseg's ``RandomCrop``; classes are counted by a histogram in place of sorting the labels."""

    @cache_randomness
    def crop_bbox(self, results: dict) -> tuple:
        """Top, bottom, left and right of the crop."""
        height, width = results["img"].shape[:2]
        box = self._draw(height, width)
        if self.cat_max_ratio < 1.0:
            for _ in range(10):
                labels = self.crop(results["gt_seg_map"], box)
                if not is_dominated(labels, self.cat_max_ratio, self.ignore_index):
                    break
                box = self._draw(height, width)
        return box

    def _draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        top, _, left, _ = _draw_box(height, width, self.crop_size)
        return top, top + self.crop_size[0], left, left + self.crop_size[1]


@TRANSFORMS.register_module()
class Resize(TakesLists, mmseg.datasets.transforms.Resize):
    """mmseg's ``Resize``, whose ``scale`` may also be a list."""


@TRANSFORMS.register_module()
class ResizeShortestEdge(TakesLists, mmseg.datasets.transforms.ResizeShortestEdge):
    """mmseg's ``ResizeShortestEdge``, whose ``scale`` may also be a list."""


@TRANSFORMS.register_module()
class RandomChoiceResize(mmcv.transforms.RandomChoiceResize):
    """mmcv's ``RandomChoiceResize``, each of whose ``scales`` may also be a list.

    A tuple or a number is one scale, as in mmcv.
    """

    def __init__(self, scales: list[Any] | tuple[int, int] | int, **kwargs: Any) -> None:
        if isinstance(scales, list):
            scales = [as_tuples(one) for one in scales]
        super().__init__(scales, **kwargs)


@TRANSFORMS.register_module()
class RandomResize(TakesLists, mmcv.transforms.RandomResize):
    """mmcv's ``RandomResize``, whose ``scale`` may also be a list."""


@TRANSFORMS.register_module()
class RandomResizeCrop(mmcv.transforms.RandomResize):
    """``RandomResize(keep_ratio=True)`` followed by ``RandomCrop``.

    Changes ``img`` and every key named in ``seg_fields``; sets ``img_shape``, ``scale``,
    ``scale_factor`` and ``keep_ratio`` as those two do.

    Args:
        scale: As of ``RandomResize``.
        crop_size: (height, width) of the crop, or one number for both.
        ratio_range: As of ``RandomResize``.
        cat_max_ratio: A crop in which one class has this share of the labelled pixels or more is
            drawn again, ten times at most.
        ignore_index: The label that is not counted.
    """

    def __init__(
        self,
        scale: tuple[int, int] | list[tuple[int, int]],
        crop_size: int | tuple[int, int],
        ratio_range: tuple[float, float] | None = None,
        cat_max_ratio: float = 1.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(as_tuples(scale), ratio_range, keep_ratio=True)
        edges = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        if len(edges) != 2 or min(edges) < 1:
            reason = f"crop_size={crop_size!r} must be one positive number or two"
            raise UserError("config-value", "RandomResizeCrop", reason)
        self.crop_size = (edges[0], edges[1])
        self.cat_max_ratio = cat_max_ratio
        self.ignore_index = ignore_index

    @cache_randomness
    def _draw_crop(
        self, labels: npt.NDArray[Any] | None, size: tuple[int, int], parts: dict[Box, Any]
    ) -> Box:
        box = _draw_box(size[1], size[0], self.crop_size)
        if self.cat_max_ratio < 1.0 and labels is not None:
            for _ in range(10):
                parts[box] = labels_part(labels, size, box)
                if not is_dominated(parts[box], self.cat_max_ratio, self.ignore_index):
                    break
                box = _draw_box(size[1], size[0], self.crop_size)
        return box

    def transform(self, results: dict) -> dict:
        """Resizes and crops ``results['img']`` (H, W[, C]) and its label maps (H, W)."""
        height, width = results["img"].shape[:2]
        results["scale"] = self._random_scale()
        size = mmcv.rescale_size((width, height), results["scale"])
        parts: dict[Box, Any] = {}  # of the label map, made to look at them
        box = self._draw_crop(results.get("gt_seg_map"), size, parts)
        results["img"] = resized_part(results["img"], size, box)
        for key in results.get("seg_fields", []):
            part = parts.get(box) if key == "gt_seg_map" else None
            results[key] = labels_part(results[key], size, box) if part is None else part
        results["img_shape"] = results["img"].shape[:2]
        results["scale_factor"] = (size[0] / width, size[1] / height)
        results["keep_ratio"] = True
        return results

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(scale={self.scale}, ratio_range={self.ratio_range}, "
            f"crop_size={self.crop_size}, cat_max_ratio={self.cat_max_ratio})"
        )


@TRANSFORMS.register_module()
class RandomLongEdgeCrop(RandomLongEdgeResize):
    """``RandomLongEdgeResize``, then ``Pad`` to the crop's size, then ``RandomCrop``.

    Sets what those set. Labels are equal. Values of the image differ by 2 of 255 at most and by
    nothing on average: Pillow rounds between its two passes, whose order depends on the size, and
    takes the place of a part in float32.

    Args:
        crop_size: (height, width).
        base_size: As of ``RandomLongEdgeResize``.
        ratio_range: As of ``RandomLongEdgeResize``.
        pad_val: Value of the padding of ``img`` and of the label maps, ``img`` and ``seg``.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        base_size: int = 520,
        ratio_range: tuple[float, float] = (0.5, 2.0),
        pad_val: dict[str, int] | None = None,
    ) -> None:
        super().__init__(base_size, ratio_range)
        if len(crop_size) != 2 or min(crop_size) < 1:
            reason = f"crop_size={crop_size!r} must be two positive numbers"
            raise UserError("config-value", "RandomLongEdgeCrop", reason)
        self.crop_size = (crop_size[0], crop_size[1])
        self.pad_val = {"img": 0, "seg": 255, **(pad_val or {})}

    @cache_randomness
    def _draw_crop(self, height: int, width: int) -> Box:
        return _draw_box(height, width, self.crop_size)

    def transform(self, results: dict) -> dict:
        """Resizes, pads and crops ``results['img']`` (H, W[, C]) and its label maps (H, W)."""
        height, width = results["img"].shape[:2]
        size = self._new_size(height, width)
        whole = max(size[1], self.crop_size[0]), max(size[0], self.crop_size[1])
        top, bottom, left, right = self._draw_crop(*whole)
        box = top, min(bottom, size[1]), left, min(right, size[0])
        missing = (bottom - box[1], right - box[3])
        image = pillow_part(results["img"], size, box)
        results["img"] = padded(image, missing, self.pad_val["img"])
        for key in results.get("seg_fields", []):
            labels = pillow_labels_part(results[key], size, box)
            results[key] = padded(labels, missing, self.pad_val["seg"])
        results["img_shape"] = results["img"].shape[:2]
        results["pad_shape"] = (*whole, *results["img"].shape[2:])
        results["pad_fixed_size"] = self.crop_size[::-1]
        results["pad_size_divisor"] = None
        results["scale"] = size
        results["scale_factor"] = (size[0] / width, size[1] / height)
        results["keep_ratio"] = True
        return results
