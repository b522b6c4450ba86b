# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Metrics that are counts of pixels, summed exactly over images and processes."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from torch import Tensor

from ..errors import UserError

__all__ = ["CountingMetric"]


class CountingMetric(BaseMetric):
    """Adds a tensor of counts for each image, int64, and sums it over the processes.

    The sums are integers, so the result does not depend on how the images were shared out. Images
    that a sampler gave out twice to fill up the last round (``DefaultSampler(round_up=True)``)
    count once.
    """

    default_prefix = ""  # None would make MMEngine warn about a missing prefix

    def __init__(self, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.last_result: dict[str, Any] | None = None
        self._start_anew()

    def _start_anew(self) -> None:
        self.results.clear()
        self._sum: Tensor | None = None  # over the images but the last
        self._last: Tensor | None = None  # of the last image
        self._pixels = self._last_pixels = self._images = 0

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, from the data set's metainfo."""
        classes = (self.dataset_meta or {}).get("classes")
        if not classes:
            raise UserError(
                "classes", "the data set", "names no classes; give it metainfo=dict(classes=(...))"
            )
        return [str(name) for name in classes]

    def _add(self, counts: Tensor, pixels: int) -> None:
        """Add the counts of an image of so many pixels."""
        if self._last is not None:
            self._sum = self._last if self._sum is None else self._sum + self._last
            self._pixels += self._last_pixels
        self._last, self._last_pixels = counts, pixels
        self._images += 1

    def _is_padding(self, size: int) -> bool:
        """Whether this process's last image is one that the sampler gave out a second time.

        MMEngine's sampler gives process r of w the images r, r + w, r + 2w, ... of the list that
        was filled up to a multiple of w, so its last one stands at r + w * (number - 1).
        """
        return get_rank() + get_world_size() * (self._images - 1) >= size

    def _summed(self, size: int, shape: tuple[int, ...]) -> tuple[Tensor, int, int]:
        """The counts (``shape``) of all processes, and the numbers of their images and pixels.

        Starts anew. ``size`` is the number of images of the data set; UserError without any.
        """
        length = torch.Size(shape).numel()
        total = torch.zeros(length + 2, dtype=torch.int64)
        if self._sum is not None:
            total[:-2] += self._sum.reshape(-1).cpu()
        images, pixels = max(self._images - 1, 0), self._pixels
        if self._last is not None and not self._is_padding(size):
            total[:-2] += self._last.reshape(-1).cpu()
            images, pixels = images + 1, pixels + self._last_pixels
        total[-2], total[-1] = images, pixels
        self._start_anew()
        all_reduce(total)  # integers: exact, and equal on every process
        images, pixels = int(total[-2]), int(total[-1])
        if images == 0:
            raise UserError(
                "empty", "the data set", "has no image; check its data_root, data_prefix and split"
            )
        if images != size:
            MMLogger.get_current_instance().warning(
                "%s scored %d images of a data set of %d: the sampler of the evaluation left some "
                "out or gave some out twice",
                type(self).__name__,
                images,
                size,
            )
        return total[:-2].reshape(shape), images, pixels

    def _prefixed(self, metrics: dict[str, float]) -> dict[str, float]:
        """Scores under the names that :meth:`evaluate` returns."""
        return {f"{self.prefix}/{k}" if self.prefix else k: v for k, v in metrics.items()}
