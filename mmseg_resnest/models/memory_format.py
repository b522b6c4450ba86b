# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Channels-last memory format for training on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from mmseg.models.decode_heads import (
    ASPPHead,
    DepthwiseSeparableASPPHead,
    EncHead,
    FCNHead,
    PSPHead,
    UPerHead,
)
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from ..kernels.convolution import ProductConv2d
from .heads import DeepLabV3Head, PublishedEncHead, PublishedFCNHead, PublishedPSPHead
from .resnest import ResNeSt
from .segmentor import EncoderDecoder

__all__ = ["use_channels_last"]

# Heads that are tested with it; a module that expects the usual order would fail.
_HEADS = (
    *(DeepLabV3Head, PublishedEncHead, PublishedFCNHead, PublishedPSPHead),
    *(ASPPHead, DepthwiseSeparableASPPHead, EncHead, FCNHead, PSPHead, UPerHead),
)


def use_channels_last(model: nn.Module) -> bool:
    """Makes a segmentor's weights, and so its feature maps, channels last, on a CPU.

    Convolutions become matrix products where those are faster (:class:`ProductConv2d`). Together
    this saves a quarter of a training step of DeepLabV3. Numbers are the same up to rounding and
    the places of single dropped activations. Checkpoints load into a model of either order.

    Only an :class:`EncoderDecoder` on a CPU of a :class:`ResNeSt` and heads that are tested with it
    is changed, in place; returns whether it was.
    """
    if not isinstance(model, EncoderDecoder) or type(model.backbone) is not ResNeSt:
        return False
    heads = [model.decode_head, getattr(model, "auxiliary_head", None)]
    flat = [head for one in heads for head in (one if isinstance(one, nn.ModuleList) else [one])]
    if (
        any(head is not None and type(head) not in _HEADS for head in flat)
        or getattr(model, "neck", None) is not None
        or any(parameter.device.type != "cpu" for parameter in model.parameters())
    ):
        return False
    model.to(memory_format=torch.channels_last)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv2d:
                setattr(module, name, ProductConv2d.like(child))
    for head in flat:
        if isinstance(head, BaseDecodeHead):
            head.conv_seg.register_forward_hook(_usual_order)
    return True


def _usual_order(module: nn.Module, args: Any, scores: Tensor) -> Tensor:
    # Scores at the image's size would be copied class by class for the softmax: 275 MB for two
    # crops of 480 pixels in 150 classes. They are resized in the order that they come in.
    return scores.contiguous()
