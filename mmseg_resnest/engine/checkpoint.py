# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Weights of any known layout into a built model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import cast

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ..errors import UserError
from ..weights import analyse, load_checkpoint, load_into
from ..weights.load_into import load_tensors
from ..weights.partial import fit, fit_parts


def bare_model(model: nn.Module) -> nn.Module:
    """The segmentor inside the wrappers for distributed training and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = cast(nn.Module, model.module)
    return model


def load_weights(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    start_training: bool = False,
    name: str | os.PathLike[str] | None = None,
    check_only: bool = False,
) -> str:
    """Load a checkpoint of any known layout into a model; every tensor must find its place.

    A file whose names are the model's own, but for a prefix, is loaded as it is, so models of other
    families work too; otherwise the layout is recognised and converted.

    Args:
        model: The model, wrapped or not. Untouched when an error is raised.
        source: What :func:`mmseg_resnest.weights.load_checkpoint` takes, or a state dict.
        start_training: The weights are only where training starts: each part of the model that is
            in the file is loaded whole, and the others stay as they are, as does the last layer for
            another number of classes.
        name: Where a state dict comes from, for messages.
        check_only: Check that the weights fit, and load nothing.

    Returns:
        One line that says what was loaded.

    Raises:
        UserError: The file cannot be read, or does not fit; lists the keys.
    """
    if isinstance(source, Mapping):
        name, state_dict = "the state dict" if name is None else os.fspath(name), source
    else:
        name = os.fspath(source)
        state_dict = load_checkpoint(name)
    target = bare_model(model)
    try:
        if start_training:
            found, layout = fit_parts(state_dict, target, name)
            if not check_only:
                load_tensors(target, found.loaded)
            return f"{found.say(target)}, from {name}{layout and f' (layout {layout})'}"
        what = "the whole model"
        if hasattr(target, "head") and "fc.weight" in state_dict:
            state_dict, what = _as_classifier(state_dict, name), "the whole published classifier"
        found = fit(state_dict, target)
        direct = 2 * len(found.placed) >= len(state_dict)
        conversion = None
        if found.missing:  # another layout, of which the backbone alone may have the model's names
            try:
                conversion = analyse(state_dict)
            except UserError:
                if not direct:
                    raise
        if conversion is not None and (
            not direct or len(fit(conversion.state_dict, target).placed) > len(found.placed)
        ):
            state_dict = conversion.state_dict
            what = f"the whole model (layout {conversion.layout})"
        else:
            state_dict = {**{key: state_dict[key] for key in found.left_out}, **found.placed}
        headless = not any(key.startswith("decode_head.") for key in state_dict)
        if headless and hasattr(target, "decode_head"):
            message = (
                "holds no decode_head and cannot segment; train from it with --cfg-options "
                f"load_from={name}"
            )
            raise UserError("checkpoint", "", message)
        load_into(target, state_dict, check_only=check_only)
    except UserError as error:
        raise UserError(error.code, f"checkpoint {name}", error.message) from error
    return f"{what} from {name}"


def _as_classifier(state_dict: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A published backbone with its classifier under the names of MMPretrain's classifiers."""
    found = analyse(state_dict, name)
    whole = {f"backbone.{key}": value for key, value in found.state_dict.items()}
    return {**whole, **{f"head.{key}": state_dict[key] for key in found.left_out}}
