# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What all losses share: their options, class weights, and the pixels that count."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from ...errors import UserError, check_value

#: What ``class_weight`` may be: a number for each class, or a file with them.
ClassWeight = Sequence[float] | str | None


class SegmentationLoss(nn.Module):
    """A loss of scores (N, C, ...) and labels (N, ...), or of targets of the scores' shape.

    Scores are logits, of any precision; the loss is computed in float32 or float64. A head with one
    output scores class 1 against class 0: to a loss of class probabilities it is the pair of logits
    (0, score).

    Args:
        loss_name: Name in the log; what is trained has ``loss`` in it.
        loss_weight: What the loss is multiplied by.
        reduction: 'mean', 'sum' or 'none'.
        class_weight: A weight for each class, or a ``.json``, ``.yaml`` or ``.npy`` file with them.
            With one output there are two, or one for class 1, and class 0 has weight 1.
        ignore_index: A label to ignore beside the one that the head passes.

    Raises:
        UserError: An option has a value that is not accepted, or the file cannot be read.
    """

    #: Whether reduction 'none' gives a value for each pixel.
    per_pixel = False
    #: Whether targets may have the shape of the scores: several classes, or none, at a place.
    multi_label = False

    def __init__(
        self,
        loss_name: str,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        class_weight: ClassWeight = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        check_number("loss_weight", loss_weight, -math.inf)
        check_value("loss_name", loss_name, "a text", isinstance(loss_name, str))
        check_index("ignore_index", ignore_index)
        self.loss_name = loss_name
        self.loss_weight = float(loss_weight)
        _check_reduction(reduction)
        self.reduction = reduction
        self.class_weight = None if class_weight is None else _read_weights(class_weight)
        self.ignore_index = ignore_index
        self._constants: dict[Any, Tensor] = {}

    def check_outputs(self, outputs: int) -> None:
        """Raise UserError if the loss does not fit a head of so many outputs."""
        self.check_count("class_weight", self.class_weight, outputs)

    def check_count(self, option: str, values: Any, outputs: int) -> None:
        """Raise UserError if an option is a list and has not a value for each class."""
        counts = (1, 2) if outputs == 1 else (outputs,)
        if isinstance(values, list) and len(values) not in counts:
            wanted = " or ".join(map(str, counts))
            raise UserError(
                "config-conflict",
                f"config key {option}",
                f"has {len(values)} values, and the head needs {wanted}: one for each class",
            )

    def reduction_of(self, reduction: str | None) -> str:
        """The reduction of a call; None is the one of the config."""
        if reduction is None:
            return self.reduction
        _check_reduction(reduction)
        return reduction

    def weights(self, scores: Tensor) -> Tensor | None:
        """The class weights for scores (N, C, ...): (C,), or (2,) with one output."""
        if self.class_weight is None:
            return None
        weights = self.constant(self.class_weight, scores)
        if scores.shape[1] == 1 and len(weights) == 1:
            weights = torch.cat([torch.ones_like(weights), weights])
        return weights

    def constant(self, values: Sequence[float], scores: Tensor) -> Tensor:
        """Values (C,) where scores are, in float32 at least; kept, as copying waits for a GPU."""
        device, dtype = scores.device, torch.promote_types(scores.dtype, torch.float32)
        key = (*values, device, dtype)
        if key not in self._constants:
            with torch.inference_mode(False):
                self._constants[key] = torch.tensor(values, device=device, dtype=dtype)
        return self._constants[key]

    def ignored(self, ignore_index: int | None) -> tuple[int, ...]:
        """The labels that do not count: the head's, and that of the loss."""
        both = (ignore_index, self.ignore_index)
        return tuple(index for index in both if index is not None)


def check_number(option: str, value: object, least: float = 0, most: float = math.inf) -> None:
    """Raise UserError unless a value is a finite number in a range."""
    wanted = "a number" if least == -math.inf else f"a number of at least {least:g}"
    wanted += f" and at most {most:g}" if most < math.inf else ""
    number = isinstance(value, int | float) and math.isfinite(value) and least <= value <= most
    check_value(option, value, wanted, number)


def check_index(option: str, value: object) -> None:
    """Raise UserError unless a value is a label to ignore, or None."""
    check_value(option, value, "a whole number or None", value is None or type(value) is int)


def _check_reduction(reduction: object) -> None:
    good = reduction in ("none", "mean", "sum")
    check_value("reduction", reduction, "'none', 'mean' or 'sum'", good)


def _read_weights(weights: ClassWeight) -> list[float]:
    """Class weights as a list of numbers, from a file if it is named."""
    if isinstance(weights, str):
        weights = _read_file(Path(weights))
    values: Any = weights.tolist() if isinstance(weights, np.ndarray | Tensor) else weights
    good = isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in values
    )
    check_value("class_weight", values, "numbers of at least 0, one for each class", good)
    return [float(value) for value in values]


def _read_file(path: Path) -> Any:
    """The content of a file of class weights. Pickles, which can run code, are not read."""
    subject = "config key class_weight"
    try:
        if path.suffix == ".npy":
            return np.load(path)
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        if path.suffix in (".yaml", ".yml"):
            return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("not-found", subject, f"{path} does not exist") from error
    except OSError as error:
        raise UserError("unreadable", subject, f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError, yaml.YAMLError) as error:
        raise UserError("format", subject, f"{path} cannot be read: {error}") from error
    raise UserError("format", subject, f"{path} must be a .json, .yaml or .npy file")


def as_float(scores: Tensor) -> Tensor:
    """Scores in float32, or in float64 if they are."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def as_classes(scores: Tensor) -> Tensor:
    """Logits (N, 2, ...) of the one output of a head; other scores as they are."""
    return torch.cat([torch.zeros_like(scores), scores], 1) if scores.shape[1] == 1 else scores


def check_labels(labels: Tensor, valid: Tensor, classes: int) -> None:
    """Raise UserError if a label that is not ignored is not a class."""
    wrong = labels[valid & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise UserError(
            "label",
            "label map",
            f"holds {int(wrong[0])}, which is neither one of the {classes} classes of the model "
            "nor its ignore_index; check-data lists such files",
        )


def labelled(
    scores: Tensor, labels: Tensor, ignored: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Takes what is ignored out of scores (N, C, ...) and labels (N, ...).

    Returns:
        Scores with 0 at ignored pixels, which passes no gradient on; labels (N, ...), int64, with 0
        there; and where pixels count (N, ...), bool.
    """
    labels = labels.long()
    valid = torch.ones_like(labels, dtype=torch.bool)
    for index in ignored:
        valid &= labels != index
    check_labels(labels, valid, max(scores.shape[1], 2))
    scores = as_float(scores).masked_fill(~valid.unsqueeze(1), 0)
    return scores, labels.masked_fill(~valid, 0), valid


def one_hot(labels: Tensor, outputs: int, like: Tensor) -> Tensor:
    """Targets (N, outputs, ...) of labels (N, ...); one output is for class 1."""
    first = 1 if outputs == 1 else 0
    classes = torch.arange(first, first + outputs, device=labels.device)
    classes = classes.view(-1, *[1] * (labels.dim() - 1))
    return (labels.unsqueeze(1) == classes).to(like.dtype)


def against_rest(
    scores: Tensor, labels: Tensor, weight: Tensor | None, ignored: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores as those of one class against the rest.

    Args:
        scores: (N, C, ...).
        labels: (N, ...), or targets (N, C, ...) of 0, 1 and what is ignored.
        weight: What each pixel counts, (N, ...), or None.
        ignored: Labels that do not count.

    Returns:
        Scores and targets (N, C, ...), and what each pixel counts (N, 1, ...), or with targets
        (N, C, ...): 0 where ignored.
    """
    if labels.shape == scores.shape:
        valid = torch.ones_like(labels, dtype=torch.bool)
        for index in ignored:
            if index not in (0, 1):  # with a target for each class these are answers
                valid &= labels != index
        scores = as_float(scores).masked_fill(~valid, 0)
        targets = labels.masked_fill(~valid, 0).to(scores.dtype)
        mask = valid.to(scores.dtype)
    else:
        scores, labels, valid = labelled(scores, labels, ignored)
        targets = one_hot(labels, scores.shape[1], scores)
        mask = valid.unsqueeze(1).to(scores.dtype)
    if weight is not None:
        mask = mask * (weight if weight.dim() == scores.dim() else weight.unsqueeze(1))
    return scores, targets, mask


def by_channel(values: Tensor, like: Tensor) -> Tensor:
    """Values (C,) in a shape that multiplies (N, C, ...)."""
    return values.view(-1, *[1] * (like.dim() - 2))
