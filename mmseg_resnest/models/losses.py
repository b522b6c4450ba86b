# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Cross entropy whose mean is the one over the pixels of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from mmseg.models.losses import CrossEntropyLoss as MMSegCrossEntropyLoss
from torch import Tensor

from ..registry import MODELS

__all__ = ["CrossEntropyLoss"]


@MODELS.register_module()
class CrossEntropyLoss(MMSegCrossEntropyLoss):
    """MMSegmentation's loss of this name; several processes train as one with all the images.

    A mean over labelled pixels, or weighted by class, divides by a number of each process's own
    images, and the mean of such means is not the mean over all images. Here all processes divide by
    their average number. With one process nothing changes.
    """

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: Any = None,
        reduction_override: str | None = None,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of scores (N, C, ...) for labels (N, ...), a scalar."""
        reduction = reduction_override or self.reduction
        if reduction == "mean" and avg_factor is None and torch.is_grad_enabled():
            avg_factor = self._shared_factor(label, ignore_index)
        return super().forward(
            cls_score, label, weight, avg_factor, reduction_override, ignore_index, **kwargs
        )

    def _shared_factor(self, label: Tensor, ignore_index: int) -> Tensor | None:
        """What to divide the summed loss by, or None where processes agree by themselves."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return None
        if self.use_sigmoid or self.use_mask:
            return None
        labelled = label != ignore_index
        if self.class_weight is not None:
            factor = label.new_tensor(self.class_weight, dtype=torch.float32)[label[labelled]].sum()
        elif self.avg_non_ignore:
            factor = labelled.sum().float()
        else:
            return None
        dist.all_reduce(factor)
        return factor / dist.get_world_size()
