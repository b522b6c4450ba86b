# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A split-attention block at toy size, and what one training step makes of it."""

from __future__ import annotations

import torch
from torch import nn

from mmseg_resnest.models.split_attention import SplitAttentionConv2d


def block(radix, groups=1, dtype=torch.float64, device="cpu", **options):
    """One with norms that do something."""
    torch.manual_seed(radix)
    made = SplitAttentionConv2d(24, 6, groups=groups, radix=radix, **options)
    for norm in (made.bn0, made.bn1):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return made.to(device, dtype)


def step(made, images, call=None):
    """Output, all gradients and the running statistics, by name."""
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    out = (call or made)(images)
    ramp = torch.arange(out.numel(), device=out.device, dtype=out.dtype).reshape(out.shape)
    (out * ramp.sin()).sum().backward()
    gradients = {name: p.grad for name, p in made.named_parameters() if p.requires_grad}
    return {"out": out.detach(), "images": images.grad, **gradients, **dict(made.named_buffers())}
