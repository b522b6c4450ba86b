# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Distillation: a segmentor learns from the scores of another one, beside its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from .._stack import normalisation
from .losses.base import as_classes
from .losses.distillation import DistillationLoss
from .segmentor import padding

__all__ = ["Distillation"]


class Distillation:
    """A frozen teacher and the losses between its scores and a student's.

    It is no module, and copies of a student share it: the teacher is in no state dict, and neither
    optimizer, averaging of weights nor wrappers for several processes see it. It follows the images
    to their device.

    Every pixel counts, those without a label too: the teacher has an answer for them.

    Args:
        teacher: A segmentor; put into evaluation mode, without gradients.
        losses: What is added to the student's own losses.
        student: The student's data preprocessor, whose images the teacher gets in its own mean and
            deviation.
        reversed_channels: Whether red and blue of the student's images have changed places for the
            teacher's network.
        order: The teacher's index of each of the student's classes; None: the same.
        overlapping: Whether the classes of both may overlap.
    """

    def __init__(
        self,
        teacher: nn.Module,
        losses: Sequence[DistillationLoss],
        student: Any,
        reversed_channels: bool = False,
        order: Sequence[int] | None = None,
        overlapping: bool = False,
    ) -> None:
        self.teacher: Any = teacher.eval().requires_grad_(False)
        self._losses = list(losses)
        self._order = None if order is None else list(order)
        self._overlapping = overlapping
        self._reversed = reversed_channels
        self._affine = _affine(student, self.teacher.data_preprocessor, reversed_channels)
        self._padding = float(getattr(self.teacher.data_preprocessor, "pad_val", 0) or 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Distillation:
        return self  # of averaged weights and of the dry step: what never changes is not copied

    @torch.no_grad()
    def scores(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> Tensor:
        """The teacher's scores (N, C, h, w) for the student's normalised images (N, 3, H, W).

        At the resolution of its head where that is known.
        """
        # Asked for one parameter: ``to`` goes through all of them, in each step.
        if next(self.teacher.parameters(), inputs).device != inputs.device:
            self.teacher.to(inputs.device)
        images = inputs.flip(1) if self._reversed else inputs
        if self._affine is not None:
            scale, shift = (one.to(images) for one in self._affine)
            images = images * scale + shift
            for image, sample in zip(images, data_samples, strict=True):
                left, right, top, bottom = padding(sample.metainfo)
                height, width = image.shape[1:]
                image[:, :top] = image[:, height - bottom :] = self._padding
                image[:, :, :left] = image[:, :, width - right :] = self._padding
        if hasattr(self.teacher, "logits"):
            return self.teacher.logits(images)
        size = tuple(images.shape[2:])
        metas = [dict(ori_shape=size, img_shape=size, pad_shape=size) for _ in images]
        return self.teacher.encode_decode(images, metas)

    def losses(self, scores: Tensor, wanted: Tensor, align_corners: bool) -> dict[str, Tensor]:
        """The losses of a student's scores (N, C, h, w), by name.

        ``wanted`` is what :meth:`scores` returned; it is resized (bilinear) to the size of
        ``scores``.
        """
        if self._order is not None or scores.shape[1] != wanted.shape[1]:
            scores, wanted = as_classes(scores), as_classes(wanted)
        if self._order is not None:
            wanted = wanted[:, self._order]
        if wanted.shape[2:] != scores.shape[2:]:
            size, how = scores.shape[2:], dict(mode="bilinear", align_corners=align_corners)
            wanted = resize(wanted.float(), size, **how, warning=False)
        found: dict[str, Tensor] = {}
        for loss in self._losses:
            value = loss(scores, wanted, self._overlapping)
            name = f"distill.{loss.loss_name}"
            found[name] = found[name] + value if name in found else value
        return found


def _affine(student: Any, teacher: Any, reversed_channels: bool) -> tuple[Tensor, Tensor] | None:
    """Factor and summand (C, 1, 1) that turn a student's images into a teacher's; None: the same.

    Both are of the teacher's order of channels.
    """
    ours, theirs = (
        normalisation(one) or (torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
        for one in (student, teacher)
    )
    (mean, std), (mean_t, std_t) = (
        tuple(value.detach().cpu().double() for value in one) for one in (ours, theirs)
    )
    if reversed_channels:
        mean, std = mean.flip(0), std.flip(0)
    scale, shift = std / std_t, (mean - mean_t) / std_t
    if bool((scale == 1).all()) and not bool(shift.any()):
        return None
    return scale, shift
