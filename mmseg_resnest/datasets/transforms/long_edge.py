# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The published training augmentation, where MMSegmentation has no part for it.

The recipe (PyTorch-Encoding) mirrors, resizes the long edge to a random integer, pads at the
bottom and at the right up to the crop size, and crops at random. The stack's ``RandomFlip``,
``Pad(size=...)`` and ``RandomCrop`` do the rest exactly so; the resize is here.
"""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from ...errors import UserError
from ...registry import TRANSFORMS
from .resample import resize_image, resize_labels


@TRANSFORMS.register_module()
class RandomLongEdgeResize(BaseTransform):
    """Resizes the long edge to a random integer and the short edge in proportion.

    The long edge is uniform over the integers from int(base_size * low) to int(base_size * high),
    both included; the short edge is int(short * long_new / long + 0.5). The image is filtered by
    Pillow's bilinear (antialiased), label maps by its nearest, as in the published code
    (PyTorch-Encoding, ``_sync_transform``). ``ratio_range`` is (low, high), both above 0.

    Changes ``img`` and every key named in ``seg_fields``; sets ``img_shape``, ``scale``,
    ``scale_factor`` (both (width, height)) and ``keep_ratio``.

    Raises:
        UserError: The range is empty, or its low end leaves no pixel.
    """

    def __init__(self, base_size: int = 520, ratio_range: tuple[float, float] = (0.5, 2.0)) -> None:
        low, high = ratio_range
        if not 0 < low <= high or int(base_size * low) < 1:
            given = f"base_size={base_size}, ratio_range={tuple(ratio_range)}"
            reason = f"{given}: give two ratios, the smaller first, that leave at least 1 pixel"
            raise UserError("config-value", "RandomLongEdgeResize", reason)
        self.base_size = base_size
        self.ratio_range = (low, high)

    @cache_randomness
    def _draw_long_edge(self) -> int:
        low, high = (int(self.base_size * ratio) for ratio in self.ratio_range)
        return int(np.random.randint(low, high + 1))

    def _new_size(self, height: int, width: int) -> tuple[int, int]:
        """Width and height to resize an image of this size to."""
        long_edge = self._draw_long_edge()
        # max(1, ...): an image a thousand times longer than wide keeps one pixel.
        short_edge = max(1, int(1.0 * min(height, width) * long_edge / max(height, width) + 0.5))
        return (short_edge, long_edge) if height > width else (long_edge, short_edge)

    def transform(self, results: dict) -> dict:
        """Resizes ``results['img']`` (H, W[, C]) and its label maps (H, W)."""
        height, width = results["img"].shape[:2]
        size = self._new_size(height, width)
        results["img"] = resize_image(results["img"], size)
        for key in results.get("seg_fields", []):
            results[key] = resize_labels(results[key], size)
        results["img_shape"] = (size[1], size[0])
        results["scale"] = size
        results["scale_factor"] = (size[0] / width, size[1] / height)
        results["keep_ratio"] = True
        return results

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(base_size={self.base_size}, ratio_range={self.ratio_range})"
