# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""State dicts into models: strictly, or with one list of what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..errors import UserError
from .convert import convert_state_dict
from .load import load_checkpoint
from .partial import CLASSIFIER, check_left_out, fit, not_fitting
from .state_dict import list_keys

_STAGE = re.compile(r"((?:.*\.)?)layer[2-4]\.")


def _without_unbuilt_stages(
    state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``state_dict`` less the stages that a backbone with fewer of them does not have."""
    built = {match[0] for key in target if (match := _STAGE.match(key))}
    left_out = set()
    for key in state_dict:
        match = _STAGE.match(key)
        if match and match[0] not in built and f"{match[1]}layer1.0.conv1.weight" in target:
            left_out.add(match[0])
    if not left_out:
        return dict(state_dict)
    text = f"left out of the checkpoint, the model has no such stages: {list_keys(left_out)}"
    print_log(text, logger="current")
    return {k: v for k, v in state_dict.items() if not k.startswith(tuple(left_out))}


def load_into(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    source: str | Path | None = None,
    check_only: bool = False,
) -> None:
    """Loads a state dict strictly; one with other names is converted first if its layout is known.

    Args:
        model: The model, possibly wrapped for distributed training.
        state_dict: Tensors under the model's names, or in a layout that
            :func:`~mmseg_resnest.weights.convert_state_dict` turns into them.
        source: The file that errors name.
        check_only: Check that it fits, and load nothing.

    Raises:
        UserError: Keys are missing, left over or of another shape; the message lists them. The
            model is untouched then.
    """
    inner = cast(nn.Module, model.module) if is_model_wrapper(model) else model
    target = inner.state_dict()
    label = "the checkpoint" if source is None else str(source)
    why_not = ""
    if state_dict.keys() != target.keys():
        try:
            state_dict = convert_state_dict(state_dict, classifier="fc.weight" in target)
        except UserError as error:
            why_not = f" (it does not convert either: {error.message})"
        state_dict = _without_unbuilt_stages(state_dict, target)
    differing = [
        key
        for key, value in state_dict.items()
        if key in target and tuple(value.shape) != tuple(target[key].shape)
    ]
    wrong = {
        "are missing": [key for key in target if key not in state_dict],
        "are not in the model": [key for key in state_dict if key not in target],
        "have another shape": [
            f"{key} ({list(state_dict[key].shape)}, the model has {list(target[key].shape)})"
            for key in differing
        ],
    }
    if any(wrong.values()):
        advice = "use the config that the checkpoint belongs to"
        last = next(filter(CLASSIFIER.search, differing), None)
        if last is not None:
            theirs, ours = state_dict[last].shape[0], target[last].shape[0]
            advice += f" (it has {theirs} classes and the model {ours})"
        raise not_fitting(label, inner, wrong, advice + why_not)
    if not check_only:
        load_tensors(inner, state_dict)


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors that are known to fit, under the model's names; the others stay."""
    target = model.state_dict()
    model.load_state_dict(
        {key: sharded_like(value, target[key]) for key, value in tensors.items()}, strict=False
    )


def load_backbone(
    backbone: nn.Module,
    name_or_path: str | Path,
    prefix: str | None = None,
    check_only: bool = False,
) -> str:
    """Loads a ResNeSt backbone or classifier from a file in any known layout, strictly.

    Where the backbone takes another number of channels, its first convolution is adapted
    (:func:`.adapt_stem`).

    Args:
        backbone: A :class:`~mmseg_resnest.models.ResNeSt`.
        name_or_path: What :func:`load_checkpoint` takes: a backbone or a segmentation model, of
            which the backbone is taken. A classifier needs a file that has one.
        prefix: Use only the keys that start with it, without it; None finds it.
        check_only: Check that it fits, and load nothing.

    Returns:
        What was loaded, in words.

    Raises:
        UserError: The file cannot be read, has no key with the prefix, has an unknown layout, or
            does not fit the backbone.
    """
    state_dict = load_checkpoint(name_or_path)
    if prefix:
        state_dict = below(prefix, state_dict, str(name_or_path))
    found = fit(state_dict, backbone, any_channels=True)
    if found.missing or found.shapes:  # in another layout, or it does not fit
        classifier = "fc.weight" in backbone.state_dict()
        state_dict = convert_state_dict(state_dict, str(name_or_path), classifier)
        state_dict = _below("backbone.", state_dict) or state_dict
        found = fit(state_dict, backbone, any_channels=True)
        if found.stem.name:
            state_dict = {**state_dict, found.stem.name: found.placed[found.stem.name]}
        load_into(backbone, state_dict, source=name_or_path, check_only=check_only)
    else:
        check_left_out(found, backbone, str(name_or_path))
        if not check_only:
            load_tensors(backbone, found.loaded)
    return found.say(backbone)


def below(prefix: str, state_dict: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it; UserError if there are none."""
    start = prefix.rstrip(".") + "."
    part = _below(start, state_dict)
    if not part:
        message = f"no key starts with prefix {start!r}; remove prefix from init_cfg or correct it"
        raise UserError("checkpoint", label, f"{message}; its keys are: {list_keys(state_dict)}")
    return part


def _below(prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}


def sharded_like(value: Tensor, target: Tensor) -> Tensor:
    """A tensor, the same on every process, sharded like ``target`` if that is a ``DTensor``."""
    if not hasattr(target, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded = cast(Any, target)
    mesh = sharded.device_mesh
    # Without a source: nothing is sent, every process has it.
    return distribute_tensor(
        value.to(mesh.device_type), mesh, sharded.placements, src_data_rank=None
    )
