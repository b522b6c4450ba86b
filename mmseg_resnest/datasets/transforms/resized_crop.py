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
from PIL import Image

from ...errors import UserError
from ...registry import TRANSFORMS
from .long_edge import RandomLongEdgeResize, resize_image

__all__ = ["RandomCrop", "RandomLongEdgeCrop", "RandomResizeCrop"]

Box = tuple[int, int, int, int]  # top, bottom, left, right
# How far a part's pixels may be moved, in pixels of the image.
_SHIFT = 1 / 64


def _draw_box(height: int, width: int, crop_size: tuple[int, int]) -> Box:
    """Where the crop lies in an image; numbers are drawn as mmseg's ``RandomCrop`` draws them."""
    top = np.random.randint(0, max(height - crop_size[0], 0) + 1)
    left = np.random.randint(0, max(width - crop_size[1], 0) + 1)
    return top, min(top + crop_size[0], height), left, min(left + crop_size[1], width)


def is_dominated(labels: npt.NDArray[Any], limit: float, ignore_index: int = 255) -> bool:
    """Whether one class has ``limit`` or more of the labelled pixels, or there is but one class.

    The class to look at is the most frequent one of a few pixels. Its exact number decides, unless
    it is so small that another class may be over the limit: then all are counted.

    Args:
        labels: (H, W), integers.
        limit: A share.
        ignore_index: The label that is not counted.
    """
    few = labels[:: max(1, labels.shape[0] // 32), :: max(1, labels.shape[1] // 32)].ravel()
    counts = np.bincount(few, minlength=256)
    if 0 <= ignore_index < len(counts):
        counts[ignore_index] = 0
    labelled = labels.size - int(np.count_nonzero(labels == ignore_index))
    if not labelled:
        return True
    often = int(np.count_nonzero(labels == counts.argmax())) if counts.any() else 0
    if limit > 0.5 and often > (1 - limit) * labelled:
        return often == labelled or often / labelled >= limit
    counts = _counts(labels)
    if 0 <= ignore_index < len(counts):
        counts[ignore_index] = 0
    return bool(np.count_nonzero(counts) < 2 or counts.max() / labelled >= limit)


def _counts(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """How often each label occurs; OpenCV counts bytes in a third of the time."""
    if labels.dtype != np.uint8 or labels.size >= 2**24:  # above, its float32 may not be exact
        return np.bincount(labels.ravel(), minlength=256)
    return cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel().astype(np.int64)


@TRANSFORMS.register_module()
class RandomCrop(mmseg.datasets.transforms.RandomCrop):
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


def resized_part(image: npt.NDArray[Any], size: tuple[int, int], box: Box) -> npt.NDArray[Any]:
    """A part of an image that was resized bilinearly, as OpenCV resizes it.

    Args:
        image: (H, W, C), uint8 or float32.
        size: (width, height) of the whole resized image.
        box: The part of that.

    Returns:
        (bottom - top, right - left, C), the part of ``cv2.resize(image, size)`` with its pixels
        moved by 1/64 of a pixel of the image at most, along each axis: values differ by 1/64 of the
        difference between neighbours along each, and by rounding.
    """
    height, width = image.shape[:2]
    top, bottom, left, right = box
    if size == (width, height):
        return image[top:bottom, left:right]
    parts = []
    for length, resized, first, last in (
        (height, size[1], top, bottom),
        (width, size[0], left, right),
    ):
        source, start = _start_of_part(length, resized, first)
        end = min(int(np.ceil(last * length / resized)) + 2, length)
        parts.append((source, end, first - start, last - first, resized / length))
    (y0, y1, skip_down, rows, fy), (x0, x1, skip_across, columns, fx) = parts
    out = cv2.resize(image[y0:y1, x0:x1], None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
    return out[skip_down : skip_down + rows, skip_across : skip_across + columns]


def _start_of_part(length: int, resized: int, first: int) -> tuple[int, int]:
    """Where the resize of a part begins: the image's place and the result's that lies there.

    A resize begins at whole pixels of both, and those seldom meet. Taken is the last place of the
    result which is (nearly) at a whole pixel and from which on ``first`` is made of the part's own
    pixels, not of the repeated ones at its edge. The beginning of the image is such a place.
    """
    scale = length / resized
    nearest = first if scale >= 1 else first - int(np.ceil(0.5 / scale))
    starts = np.arange(max(nearest, 0) + 1)
    places = starts * scale
    # A shift that is large beside a pixel of the result would change the part's number of pixels.
    near = np.abs(places - np.rint(places)) <= min(_SHIFT, 0.25 * scale)
    start = int(starts[near][-1])
    return int(np.rint(places[start])), start


def labels_part(labels: npt.NDArray[Any], size: tuple[int, int], box: Box) -> npt.NDArray[Any]:
    """A part of a label map that was resized by OpenCV's nearest neighbour.

    Args:
        labels: (H, W).
        size: (width, height) of the whole resized map.
        box: The part of that.

    Returns:
        (bottom - top, right - left), equal to that part of ``cv2.resize(labels, size, ...)``.
    """
    height, width = labels.shape
    top, bottom, left, right = box
    if size == (width, height):
        return labels[top:bottom, left:right]
    rows = _nearest(top, bottom, height, size[1])
    columns = _nearest(left, right, width, size[0])
    return _gathered(labels, rows, columns)


def _nearest(first: int, last: int, length: int, resized: int) -> npt.NDArray[np.intp]:
    """The places that the resized places ``first`` to ``last`` are taken from."""
    # OpenCV's order of operations: a float that rounds otherwise would be another pixel.
    places = np.floor(np.arange(first, last) * (1.0 / (resized / length))).astype(np.intp)
    return np.minimum(places, length - 1)


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
        super().__init__(scale, ratio_range, keep_ratio=True)
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
        padded = max(size[1], self.crop_size[0]), max(size[0], self.crop_size[1])
        top, bottom, left, right = self._draw_crop(*padded)
        box = top, min(bottom, size[1]), left, min(right, size[0])
        missing = (bottom - box[1], right - box[3])
        image = _pillow_part(results["img"], size, box)
        results["img"] = _padded(image, missing, self.pad_val["img"])
        for key in results.get("seg_fields", []):
            labels = _pillow_labels_part(results[key], size, box)
            results[key] = _padded(labels, missing, self.pad_val["seg"])
        results["img_shape"] = results["img"].shape[:2]
        results["pad_shape"] = (*padded, *results["img"].shape[2:])
        results["pad_fixed_size"] = self.crop_size[::-1]
        results["pad_size_divisor"] = None
        results["scale"] = size
        results["scale_factor"] = (size[0] / width, size[1] / height)
        results["keep_ratio"] = True
        return results


def _padded(pixels: npt.NDArray[Any], missing: tuple[int, int], value: int) -> npt.NDArray[Any]:
    """Pixels added at the bottom and at the right."""
    if not any(missing):
        return pixels
    shape = (pixels.shape[0] + missing[0], pixels.shape[1] + missing[1], *pixels.shape[2:])
    out = np.full(shape, value, pixels.dtype)
    out[: pixels.shape[0], : pixels.shape[1]] = pixels
    return out


def _pillow_labels_part(
    labels: npt.NDArray[Any], size: tuple[int, int], box: Box
) -> npt.NDArray[Any]:
    """A part of what Pillow's nearest neighbour makes of a label map, value by value."""
    top, bottom, left, right = box
    rows = _pillow_nearest(labels.shape[0], size[1])[top:bottom]
    columns = _pillow_nearest(labels.shape[1], size[0])[left:right]
    return _gathered(labels, rows, columns)


def _pillow_nearest(length: int, resized: int) -> npt.NDArray[np.intp]:
    """The places that Pillow takes; it adds the step up, rounding each time."""
    if length == resized:
        return np.arange(length)
    steps = np.full(resized, length / resized)
    steps[0] /= 2
    return np.minimum(np.floor(np.cumsum(steps)).astype(np.intp), length - 1)


def _gathered(
    labels: npt.NDArray[Any], rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]
) -> npt.NDArray[Any]:
    """Rows and columns, each in ascending order, of a label map."""
    top, left = rows[0], columns[0]
    near = labels[top : rows[-1] + 1, left : columns[-1] + 1]
    if labels.dtype != np.uint8:
        return near.take(rows - top, axis=0).take(columns - left, axis=1)
    # Rows are copied as a whole, columns pixel by pixel: OpenCV turns the ones into the others.
    few = len(near) < len(rows)
    near = near if few else near.take(rows - top, axis=0)
    near = cv2.transpose(cv2.transpose(near).take(columns - left, axis=0))
    return near.take(rows - top, axis=0) if few else near


def _pillow_part(pixels: npt.NDArray[Any], size: tuple[int, int], box: Box) -> npt.NDArray[Any]:
    """A part of what Pillow's bilinear resize to ``size`` (width, height) makes of an image."""
    top, bottom, left, right = box
    height, width = pixels.shape[:2]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.shape[2] == 3):
        return resize_image(pixels, size)[top:bottom, left:right]
    across, down = width / size[0], height / size[1]
    # The rows and columns that the part is made from, with all that the filter reaches.
    reach = [int(max(scale, 1.0)) + 2 for scale in (down, across)]
    first = max(int(top * down) - reach[0], 0), max(int(left * across) - reach[1], 0)
    last = int(bottom * down) + reach[0], int(right * across) + reach[1]
    near = np.ascontiguousarray(pixels[first[0] : last[0], first[1] : last[1]])
    part = (
        max(left * across - first[1], 0.0),
        max(top * down - first[0], 0.0),
        min(right * across - first[1], near.shape[1]),
        min(bottom * down - first[0], near.shape[0]),
    )
    resized = Image.fromarray(near).resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR, box=part
    )
    return np.array(resized)
