# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Whether the losses of a model's config fit its heads."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import UserError, check_value
from ...registry import MODELS, type_name
from .base import SegmentationLoss, check_index
from .distillation import DistillationLoss

#: Losses of the stack that have no meaning for scores and labels of classes, and why.
_REFUSED = {
    **dict.fromkeys(
        ("KLDivLoss", "ChannelWiseDivergence", "KLDivergence"),
        "compares the scores of two models, for distillation",
    ),
    "SiLogLoss": "compares depths",
}


def check_losses(model: Mapping[str, Any]) -> None:
    """Check the losses of the heads of a model's config.

    Losses that are not of this package are left alone, but with ``model.multilabel``.

    Raises:
        UserError: A loss does not fit its head; the message names ``model.HEAD.KEY``.
    """
    for name in ("decode_head", "auxiliary_head"):
        for key, head in _listed(model.get(name), f"model.{name}"):
            _check_head(head, key)
            if model.get("multilabel"):
                _check_multilabel_head(head, key)


def _check_multilabel_head(head: Mapping[str, Any], key: str) -> None:
    """Refuse losses of classes that exclude each other; a model that is not trained has none."""
    for where, config in _losses(head, f"{key}.loss_decode", many=True):
        kind = config["type"]
        loss = _checked(where, config, head.get("num_classes"))
        check_multilabel_loss(loss or (MODELS.get(kind) if isinstance(kind, str) else kind), where)


def check_multilabel_loss(loss: Any, key: str) -> None:
    """Refuse a loss, or a class of losses, of classes that exclude each other."""
    if not getattr(loss, "multi_label", False):
        name = getattr(loss, "__name__", type(loss).__name__)
        message = f"{name} is for classes that exclude each other; with model.multilabel=True use "
        message += "CrossEntropyLoss with use_sigmoid=True, FocalLoss, DiceLoss, or a list of these"
        raise UserError("config-conflict", f"config key {key}", message)


def _losses(head: Mapping[str, Any], key: str, many: bool) -> Iterator[tuple[str, Any]]:
    """The configs of the losses under a key of a head, with their whole keys."""
    name = key.rsplit(".", 1)[-1]
    if name not in head:
        return
    value = head[name]
    listed = isinstance(value, list | tuple) and many
    parts = [(f"{key}.{i}", part) for i, part in enumerate(value)] if listed else [(key, value)]
    good = bool(parts) and all(isinstance(one, Mapping) and "type" in one for _, one in parts)
    check_value(key, value, "dict(type=...)" + " or a list of such" * many, good)
    yield from parts


def _listed(configs: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The config, or those of a list, with their keys; built parts are left out."""
    listed = isinstance(configs, list | tuple)
    for index, config in enumerate(configs if listed else [configs]):
        if isinstance(config, Mapping):
            yield f"{key}.{index}" if listed else key, config


def _check_head(head: Mapping[str, Any], key: str) -> None:
    check_index(f"{key}.ignore_index", head.get("ignore_index"))
    classes = head.get("num_classes")
    outputs = head.get("out_channels") or classes
    parts = _losses(head, f"{key}.loss_decode", many=True)
    losses = [_checked(where, config, outputs) for where, config in parts]
    known = [loss for loss in losses if loss is not None]
    if known == losses and known and not any("loss" in loss.loss_name for loss in known):
        message = "has no 'loss' in it, so that the loss is shown and not trained; change the name"
        raise UserError("config-value", f"config key {key}.loss_decode.loss_name", message)
    sampler = head.get("sampler") or {}
    if type_name(sampler.get("type")) == "OHEMPixelSampler" and sampler.get("thresh") is None:
        for loss in known:
            if not loss.per_pixel:
                raise UserError(
                    "config-conflict",
                    f"config key {key}.sampler.thresh",
                    f"must be a number: {type(loss).__name__} has no value for each pixel by "
                    "which they could be chosen",
                )
    if not head.get("use_se_loss", True):
        return
    for where, config in _losses(head, f"{key}.loss_se_decode", many=False):
        se_loss = _checked(where, config, classes)
        if se_loss is not None and not se_loss.multi_label:
            raise UserError(
                "config-conflict",
                f"config key {where}",
                "must be a loss of several classes at once, as CrossEntropyLoss with "
                "use_sigmoid=True is",
            )


def build_distillation(losses: Any, key: str) -> list[DistillationLoss]:
    """Build the losses between the scores of two models from their configs, a list at a key.

    Raises:
        UserError: It is no such list, or one of them has an option that is not accepted.
    """
    built = []
    good = isinstance(losses, list | tuple) and bool(losses)
    check_value(key, losses, "a list of losses, dict(type=...)", good)
    for where, config in _losses({key.rsplit(".", 1)[-1]: losses}, key, many=True):
        kind = config["type"]
        loss = MODELS.get(kind) if isinstance(kind, str) else kind
        if not (isinstance(loss, type) and issubclass(loss, DistillationLoss)):
            message = f"{type_name(kind)} is not a loss between the scores of two models; take "
            message += "ChannelWiseDivergence or KLDivergence"
            raise UserError("config-type", f"config key {where}.type", message)
        built.append(_built(where, config, loss, None))
    return built


def _checked(key: str, config: Mapping[str, Any], outputs: int | None) -> SegmentationLoss | None:
    """The loss of a config, or None if it is not of this package."""
    kind = config.get("type")
    if (why := _REFUSED.get(type_name(kind))) is not None:
        message = f"{type_name(kind)} {why}; it is not a loss of scores and labels of classes"
        raise UserError("config-type", f"config key {key}.type", message)
    loss = MODELS.get(kind) if isinstance(kind, str) else kind
    if loss is None:
        message = f"{kind!r} is not a registered part; a loss of your own needs custom_imports"
        raise UserError("config-type", f"config key {key}.type", message)
    if not (isinstance(loss, type) and issubclass(loss, SegmentationLoss)):
        return None
    return _built(key, config, loss, outputs)


def _built(key: str, config: Mapping[str, Any], loss: type, outputs: int | None) -> Any:
    options = {name: value for name, value in config.items() if name not in ("type", "_scope_")}
    known = inspect.signature(loss).parameters
    for name in options:
        if name not in known:
            message = f"is not an option of {loss.__name__}, which has {', '.join(known)}"
            raise UserError("config-key", f"config key {key}.{name}", message)
    try:
        built = loss(**options)
        if outputs:
            built.check_outputs(outputs)
    except UserError as error:
        subject = error.subject.replace("config key ", f"config key {key}.", 1)
        raise UserError(error.code, subject, error.message) from error
    except TypeError as error:  # a value of another type than the option's
        raise UserError("config-value", f"config key {key}", str(error)) from error
    return built
