# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Segmentors of classes that may overlap: a sigmoid and a threshold for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..errors import UserError, check_value
from ..io.bit_planes import MOST_CLASSES
from ..registry import MODELS
from .losses import check_multilabel_loss

__all__ = [
    "check_multilabel", "check_thresholds", "multilabel_losses", "overlaps", "thresholds_of",
    "with_outputs",
]  # fmt: skip

_DEFAULT = 0.5


def overlaps(model: Any) -> bool:
    """Whether the classes of a segmentor may overlap, also inside wrappers."""
    while not hasattr(model, "multilabel") and hasattr(model, "module"):
        model = model.module
    return bool(getattr(model, "multilabel", False))


def check_multilabel(model: Mapping[str, Any]) -> None:
    """Check the config of a model with ``multilabel=True``, but for its losses.

    Raises:
        UserError: A part computes something of classes that exclude each other, or there are too
            many classes; the subject is ``config key model.KEY``.
    """
    if (model.get("test_cfg") or {}).get("mode") == "multi_scale_grid":
        message = "'multi_scale_grid' adds scores of a softmax; with model.multilabel=True use "
        message += "'whole' or 'slide'"
        raise UserError("config-conflict", "config key model.test_cfg.mode", message)
    for name in ("decode_head", "auxiliary_head"):
        heads: Any = model.get(name)
        listed = isinstance(heads, list | tuple)
        if listed and name == "decode_head":
            message = "is a cascade of heads, which model.multilabel=True cannot have; name one"
            raise UserError("config-conflict", f"config key model.{name}", message)
        for i, head in enumerate(heads if listed else [heads]):
            if isinstance(head, Mapping):
                _check_head(head, f"config key model.{name}" + (f".{i}" if listed else ""))


def _check_head(head: Mapping[str, Any], key: str) -> None:
    kind = head.get("type")
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    plain = getattr(kind, "loss", None) is BaseDecodeHead.loss
    own = plain and getattr(kind, "loss_by_feat", None) is not BaseDecodeHead.loss_by_feat
    if kind is not None and (not plain or own):
        message = f"{getattr(kind, '__name__', kind)} has losses of its own for classes that "
        message += "exclude each other; with model.multilabel=True take another head, such as "
        raise UserError("config-conflict", f"{key}.type", f"{message}FCNHead or DeepLabV3Head")
    if head.get("sampler"):
        message = "chooses pixels by their one class; remove it with model.multilabel=True"
        raise UserError("config-conflict", f"{key}.sampler", message)
    classes, outputs = head.get("num_classes"), head.get("out_channels")
    if not (type(classes) is int and 1 <= classes <= MOST_CLASSES):
        message = f"must be from 1 to {MOST_CLASSES} with model.multilabel=True, not {classes!r}"
        raise UserError("config-value", f"{key}.num_classes", message)
    if outputs not in (None, classes):
        message = (
            f"is {outputs}; with model.multilabel=True each of the {classes} classes has one"
            " output: remove it"
        )
        raise UserError("config-conflict", f"{key}.out_channels", message)


def check_thresholds(key: str, value: object, classes: int | None) -> None:
    """Raise UserError unless a value is a probability, or one for each class."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    good = all(
        isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one <= 1
        for one in values
    )
    if isinstance(value, list | tuple) and classes is not None:
        good = good and len(values) == classes
    wanted = "a number from 0 to 1, or one for each class"
    check_value(key, value, wanted + ("" if classes is None else f" ({classes})"), good)


def thresholds_of(test_cfg: Mapping[str, Any] | None, classes: int) -> list[float]:
    """The threshold of each class: ``test_cfg.thresholds``, 0.5 where it says nothing."""
    value = (test_cfg or {}).get("thresholds", _DEFAULT)
    check_thresholds("model.test_cfg.thresholds", value, classes)
    return [float(one) for one in (value if isinstance(value, list | tuple) else [value] * classes)]


def with_outputs(head: Any) -> Any:
    """The config of a head, or of several, that says what the stack advises otherwise of.

    It proposes one output for two classes, and a threshold for one output.
    """
    if isinstance(head, list | tuple):
        return [with_outputs(one) for one in head]
    if not isinstance(head, Mapping):
        return head
    options = {"out_channels": head["num_classes"], "threshold": _DEFAULT}
    return {**head, **{k: v for k, v in options.items() if head.get(k) is None}}


def multilabel_losses(
    head: BaseDecodeHead, scores: Tensor, data_samples: Sequence[SegDataSample]
) -> dict[str, Tensor]:
    """The losses of a head, by name.

    Args:
        head: A decode head with a score for each class.
        scores: (N, C, h, w) that it gave.
        data_samples: N samples with ``gt_sem_seg`` (C, H, W) of 0, 1 and ``head.ignore_index``.

    Raises:
        UserError: The labels are not those of C classes that may overlap.
    """
    targets = _targets(head, data_samples)
    scores = resize(scores, targets.shape[2:], mode="bilinear", align_corners=head.align_corners)
    losses: dict[str, Tensor] = {}
    parts: Any = head.loss_decode
    for loss in parts if isinstance(parts, nn.ModuleList) else [parts]:
        check_multilabel_loss(loss, "model.decode_head.loss_decode")
        value = loss(scores, targets, ignore_index=head.ignore_index)
        name = str(loss.loss_name)
        losses[name] = losses[name] + value if name in losses else value
    return losses


def _targets(head: BaseDecodeHead, data_samples: Sequence[SegDataSample]) -> Tensor:
    """(N, C, H, W) of the samples."""
    targets = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
    if targets.shape[1] != head.num_classes or targets.dtype != torch.uint8:
        found = (
            "one label a pixel" if targets.dtype != torch.uint8 else f"{targets.shape[1]} planes"
        )
        message = f"is {head.num_classes}, but the labels have {found}; load them by "
        message += f"dict(type='LoadMultilabel', num_classes={head.num_classes})"
        raise UserError("config-conflict", "config key model.decode_head.num_classes", message)
    return targets
