# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The stack's loading transforms with the fast cache, fewer passes, and errors that name the file.

They load the same pixels and have the stack's names, so that every config uses them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import cv2
import mmcv.transforms
import mmseg.datasets.transforms
import numpy as np

from ...errors import UserError
from ...io.tiled_tiff import readable
from ...registry import TRANSFORMS
from ..cache import find_pixels
from ..decode import Pixels, decode_grey, decode_image, decode_label, read_bytes, read_local

_HINT = "mmseg-resnest check-data CONFIG finds every such file"


def file_error(path: str, what: str, error: Exception, hint: str = _HINT) -> UserError:
    """The error for an image or label map that cannot be loaded."""
    if isinstance(error, FileNotFoundError):
        return UserError("not-found", path, f"this {what} is missing; {hint}")
    if isinstance(error, OSError) and error.errno is not None:
        return UserError("unreadable", path, f"cannot be read ({error.strerror}); {hint}")
    if os.path.isfile(path) and not os.path.getsize(path):
        return UserError("empty", path, f"this {what} is an empty file; {hint}")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    code = "image" if what == "image" else "label"
    return UserError(code, path, f"this {what} cannot be decoded ({reason}); {hint}")


def image_error(results: Mapping[str, Any], error: Exception) -> UserError:
    """The error for the image of a sample; check-data reads those with label maps only."""
    other = "gt_label" in results or "instances" in results  # a class, or boxes
    hint = "replace it or leave it out" if other else _HINT
    return file_error(os.fspath(results["img_path"]), "image", error, hint)


@TRANSFORMS.register_module()
class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` with the fast cache.

    Args:
        cache_dir: The cache; None looks for ``.mmseg_cache`` in the folders above the image.
        **kwargs: As of mmcv's. The cache is used with the default ``color_type``,
            ``imdecode_backend`` and ``backend_args`` only.

    Raises:
        UserError: The image is missing, truncated, damaged or not an image.
    """

    def __init__(self, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cache_dir = cache_dir

    def transform(self, results: dict) -> dict | None:
        """Sets ``img`` (H, W, 3) BGR, ``img_shape`` and ``ori_shape`` from ``img_path``."""
        try:
            return self.load(results)
        except (MemoryError, UserError):
            raise
        except Exception as error:
            raise image_error(results, error) from error

    def load(self, results: dict) -> dict | None:
        """As :meth:`transform`, with the errors of the library that decodes."""
        path, pixels = results["img_path"], None
        local = not (self.backend_args or self.file_client_args)
        colours = self.color_type == "color"
        if local and self.imdecode_backend == "cv2" and (colours or self.color_type == "grayscale"):
            pixels = find_pixels(path, self.cache_dir) if colours else None
            data = read_local(path) if pixels is None else None
            if data is not None:
                data = readable(data)
                with contextlib.suppress(Exception):  # mmcv's own error comes from below
                    pixels = decode_image(data) if colours else decode_grey(data)
        if pixels is None or pixels.ndim != (3 if colours else 2):
            return super().transform(results)
        results["img"] = pixels.astype(np.float32) if self.to_float32 else pixels
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadImageFromNDArray(mmseg.datasets.transforms.LoadImageFromNDArray):
    """mmseg's ``LoadImageFromNDArray``, which forgets the path that outputs are named by."""

    def transform(self, results: dict) -> dict:
        """Sets ``img_shape`` and ``ori_shape`` from ``img`` (H, W) or (H, W, C)."""
        path = results.get("img_path")
        return {**super().transform(results), "img_path": path}


@TRANSFORMS.register_module()
class LoadGivenArrays(mmcv.transforms.BaseTransform):
    """Stands in a model file for a loader that is not in it: images are given as arrays.

    Args:
        loader: The name of the loader.
        rgb: Whether its first three channels are red, green and blue, rather than the reverse.
    """

    def __init__(self, loader: str, rgb: bool = False) -> None:
        self.loader = loader
        self.rgb = rgb

    def transform(self, results: dict) -> dict:
        """Raises the UserError that says what to give."""
        said = f"this model's images are read by {self.loader}, whose code is not in the "
        said += "model's file; in Python give the array that it reads, or use the config with its "
        said += "checkpoint"
        raise UserError("input", str(results.get("img_path")), said)


@TRANSFORMS.register_module()
class LoadAnnotations(mmseg.datasets.transforms.LoadAnnotations):
    """mmseg's ``LoadAnnotations`` with the fast cache; it refuses label maps that do not fit.

    Args:
        num_classes: Refuse labels that are neither a class nor ``ignore_index`` once loaded;
            None takes any. Training sets it to the number of the data set's classes.
        ignore_index: The label that the loss leaves out.
        cache_dir: The cache; None looks for ``.mmseg_cache`` in the folders above the file.
        **kwargs: As of mmseg's. The cache is used with the default ``imdecode_backend`` and
            ``backend_args`` only.

    Raises:
        UserError: The label map is missing, damaged, in colour, of another size than its image or
            holds a label out of range.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        ignore_index: int = 255,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.cache_dir = cache_dir

    def transform(self, results: dict) -> dict:
        """Sets ``gt_seg_map`` (H, W) uint8 from ``seg_map_path``; named in ``seg_fields``."""
        path = os.fspath(results["seg_map_path"])
        try:
            loaded = self.load(results)
        except (MemoryError, UserError):
            raise
        except Exception as error:
            raise file_error(path, "label map", error) from error
        labels = loaded["gt_seg_map"]
        size = tuple(loaded.get("ori_shape", labels.shape))[:2]
        if labels.ndim != 2:
            reason = f"is an array of shape {labels.shape}, colours maybe; a label map is (H, W)"
            raise UserError("label", path, f"{reason}; {_HINT}")
        if labels.shape != size:
            ours, image = ("x".join(map(str, shape[::-1])) for shape in (labels.shape, size))
            reason = f"has {ours} pixels, its image {image} (width x height)"
            raise UserError("size-mismatch", path, f"{reason}; {_HINT}")
        if self.num_classes is not None and int(labels.max(initial=0)) >= self.num_classes:
            wrong = np.unique(labels[(labels >= self.num_classes) & (labels != self.ignore_index)])
            if wrong.size:
                # As in the file, where that can be said.
                low = int(results["reduce_zero_label"] and not results.get("label_map"))
                values = ", ".join(str(value + low) for value in wrong[:5].tolist())
                reason = f"holds {values}, which is neither a class ({low}.."
                reason += f"{self.num_classes - 1 + low}) nor ignored ({self.ignore_index})"
                raise UserError("label", path, f"{reason}; {_HINT}")
        return loaded

    def load(self, results: dict) -> dict:
        """As :meth:`transform`, unchecked and with the errors of the library that decodes."""
        reduce = results["reduce_zero_label"]
        agrees = self.reduce_zero_label is None or self.reduce_zero_label == reduce
        if self.imdecode_backend != "pillow" or not agrees:
            return super().transform(results)
        path = results["seg_map_path"]
        pixels = None if self.backend_args else find_pixels(path, self.cache_dir)
        if pixels is None or pixels.ndim != 2:
            pixels = decode_label(read_bytes(path, self.backend_args))
        results["gt_seg_map"] = relabel(pixels, reduce, results.get("label_map"))
        results["seg_fields"].append("gt_seg_map")
        return results


def relabel(pixels: Pixels, reduce_zero_label: bool, label_map: Mapping[int, int] | None) -> Pixels:
    """The values of a label file (H, W) as mmseg's ``LoadAnnotations`` changes them."""
    if not (reduce_zero_label or label_map):
        return pixels
    if not label_map:  # 0 becomes 255, and 255 stays: 254 can come from 255 alone
        reduced = pixels - np.uint8(1)
        reduced += (reduced == 254).view(np.uint8)
        return reduced
    table = np.arange(256, dtype=np.uint8)
    if reduce_zero_label:
        table[1:255] -= 1
        table[0] = 255
    before = table.copy()
    for old, new in label_map.items():
        table[before == old] = new
    return cv2.LUT(pixels, table).astype(np.uint8, copy=False)
