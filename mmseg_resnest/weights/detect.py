# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Recognises whose names a checkpoint has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UserError
from . import layouts
from .state_dict import list_keys, unwrap_state_dict

__all__ = ["detect_layout", "has_split_attention", "layout_of"]


def detect_layout(state_dict: Mapping[str, Any]) -> str:
    """The layout of a checkpoint, told from its keys.

    Args:
        state_dict: A state dict, possibly wrapped in ``state_dict`` or ``model``.

    Returns:
        ``published`` (``zhanghang1989/ResNeSt`` and ``PyTorch-Encoding``; timm's names and our
        backbone's are the same ones), ``openmmlab`` (MMSegmentation), ``mmpretrain``,
        ``gluoncv`` or ``mmseg-resnest`` (our segmentation models, baselines included).

    Raises:
        UserError: The keys belong to none of them; the message lists them.
    """
    return layout_of(unwrap_state_dict(state_dict))


def has_split_attention(keys: Iterable[str]) -> bool:
    """Whether backbone keys are of a ResNeSt; with MMSegmentation's stem a ResNet has the rest."""
    return any(".conv2.conv." in key for key in keys)


def layout_of(keys: Iterable[str], label: str = "state dict") -> str:
    """As :func:`detect_layout`, for the keys alone."""
    names = list(keys)
    first = {key.partition(".")[0] for key in names}
    if "pretrained" in first:
        return "published"
    if "backbone" in first:
        backbone = [key[9:] for key in names if key.startswith("backbone.")]
        has_classifier = any(key.startswith("head.fc.") for key in names)
        if _has_conv_modules(backbone):
            return "mmpretrain"
        if any(key.startswith("stem.") for key in backbone):
            if has_classifier:
                return "mmpretrain"
            return "openmmlab" if has_split_attention(backbone) else "mmseg-resnest"
        if any(key.startswith(("conv1.", "layer1.")) for key in backbone):
            return "mmseg-resnest"
    elif "stem" in first:
        return "mmpretrain" if _has_conv_modules(names) else "openmmlab"
    elif any(key.startswith(("conv1.0.", "layer1.0.")) for key in names):
        leaves = {key.rpartition(".")[2] for key in names}
        return "gluoncv" if leaves & set(layouts.GLUON_LEAVES) else "published"
    raise UserError(
        "checkpoint",
        label,
        f"not of a ResNeSt in a known layout; its {len(names)} keys are {list_keys(names)}. Known "
        "layouts: published (backbones, segmentation models), timm, MMSegmentation, MMPretrain, "
        "GluonCV, mmseg-resnest",
    )


def _has_conv_modules(keys: Iterable[str]) -> bool:
    return any(key.startswith(f"stem.{index}.conv.") for key in keys for index in range(3))
