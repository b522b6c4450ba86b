# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Resizing as Pillow and OpenCV do it: whole images and label maps, or the part of a crop alone."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Box = tuple[int, int, int, int]  # top, bottom, left, right
# How far a part's pixels may be moved, in pixels of the image.
_SHIFT = 1 / 64


def _resize_plane(plane: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> Any:
    """Resizes one (H, W) array to ``size`` = (width, height) with Pillow, keeping its type."""
    # Pillow has three single-channel modes; every other type is carried by one that holds it.
    if plane.dtype == np.uint8:
        mode: type[np.generic] = np.uint8
    elif plane.dtype.kind in "iub" and resample is Image.Resampling.NEAREST:
        mode = np.int32
    else:
        mode = np.float32
    resized = np.asarray(Image.fromarray(plane.astype(mode)).resize(size, resample))
    return resized.astype(plane.dtype)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image as Pillow's bilinear filter does: with antialiasing when it shrinks.

    (H, W) or (H, W, C) of any number type to ``size`` = (width, height), of the same type; 8-bit
    images are rounded as Pillow rounds.
    """
    bilinear = Image.Resampling.BILINEAR
    if image.ndim == 2:
        return _resize_plane(image, size, bilinear)
    if image.dtype == np.uint8 and image.shape[2] == 3:  # one call instead of one a channel
        return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size, bilinear))
    return np.stack([_resize_plane(p, size, bilinear) for p in np.moveaxis(image, 2, 0)], axis=2)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes labels (H, W) to ``size`` = (width, height) as Pillow's nearest filter does.

    It takes the pixel under the new pixel's centre; OpenCV's nearest takes the one under the
    new pixel's corner, half a pixel away.
    """
    return _resize_plane(labels, size, Image.Resampling.NEAREST)


def resized_part(image: npt.NDArray[Any], size: tuple[int, int], box: Box) -> npt.NDArray[Any]:
    """A part of an image (H, W, C), uint8 or float32, that OpenCV resized bilinearly to ``size``.

    ``size`` is (width, height) of the whole resized image. The result is that part of
    ``cv2.resize(image, size)`` with its pixels moved by 1/64 of a pixel of the image at most,
    along each axis: values differ by 1/64 of the difference between neighbours, and by rounding.
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
    """Where the resize of a part begins: the places in the image and in the result.

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
    """The part ``box`` of ``cv2.resize(labels, size)`` by nearest neighbour, value by value."""
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


def pillow_labels_part(
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


def pillow_part(pixels: npt.NDArray[Any], size: tuple[int, int], box: Box) -> npt.NDArray[Any]:
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
