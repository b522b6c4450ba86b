# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Split attention and DropBlock, the two operations of a ResNeSt block."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .norm import build_norm


class DropBlock2d(nn.Module):
    """DropBlock (Ghiasi et al., arXiv 1810.12890, algorithm 1).

    In training, square blocks of activations are set to zero, each channel of each image on its
    own, and the rest is scaled so that the layer's sum keeps its expectation. Seeds are drawn where
    a whole block fits, with the probability gamma of the paper's equation 1, so that about
    ``drop_prob`` of all activations are dropped. In evaluation it is the identity.

    Args:
        drop_prob: Expected share of dropped activations, in [0, 1).
        block_size: Side of a block in feature map pixels; cut to the feature map when larger.
    """

    def __init__(self, drop_prob: float, block_size: int = 3) -> None:
        super().__init__()
        if not 0.0 <= drop_prob < 1.0:
            raise UserError("argument", "dropblock_prob", f"must be in [0, 1), not {drop_prob}")
        if block_size < 1:
            raise UserError("argument", "dropblock_size", f"must be at least 1, not {block_size}")
        self.drop_prob = drop_prob
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        """Drops blocks of ``x`` (N, C, H, W); same shape and dtype."""
        if not self.training or self.drop_prob == 0.0:
            return x
        height, width = x.shape[-2:]
        size = min(self.block_size, height, width)
        rows, columns = height - size + 1, width - size + 1
        gamma = self.drop_prob * height * width / (size * size * rows * columns)
        seeds = torch.rand((*x.shape[:2], rows, columns), device=x.device) < gamma
        margin = size - 1
        dropped = F.max_pool2d(F.pad(seeds.float(), (margin,) * 4), size, stride=1)
        kept = 1.0 - dropped
        scale = kept.numel() / kept.sum().clamp(min=1.0)
        return x * (kept * scale).to(x.dtype)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"drop_prob={self.drop_prob}, block_size={self.block_size}"


class SplitAttentionConv2d(nn.Module):
    """Split-attention convolution (ResNeSt, arXiv 2004.08955, section 3.1 and figure 2).

    A grouped convolution makes ``radix`` splits; their sum, pooled over the image, decides through
    two 1x1 convolutions and a softmax over the splits (a sigmoid when there is one) how the splits
    are weighted in the sum that leaves the block.

    Arguments up to ``dilation`` are the convolution's. It has ``groups * radix`` groups, where
    ``groups`` is the cardinality and ``radix`` the number of splits. The gate has
    ``max(in_channels * radix / reduction_factor, 32)`` channels. DropBlock is between the first
    norm and its ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
        radix: int = 2,
        reduction_factor: int = 4,
        norm_cfg: Mapping[str, Any] | None = None,
        dropblock_prob: float = 0.0,
        dropblock_size: int = 3,
    ) -> None:
        super().__init__()
        norm_cfg = dict(type="BN") if norm_cfg is None else norm_cfg
        gate_channels = max(in_channels * radix // reduction_factor, 32)
        self.radix, self.groups = radix, groups
        self.conv = nn.Conv2d(
            in_channels, channels * radix, kernel_size, stride, padding, dilation,
            groups=groups * radix, bias=False,
        )  # fmt: skip
        self.bn0 = build_norm(norm_cfg, channels * radix)
        self.dropblock = (
            DropBlock2d(dropblock_prob, dropblock_size) if dropblock_prob > 0 else nn.Identity()
        )
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Conv2d(channels, gate_channels, 1, groups=groups)
        self.bn1 = build_norm(_gate_norm_cfg(norm_cfg, gate_channels, groups), gate_channels)
        self.fc2 = nn.Conv2d(gate_channels, channels * radix, 1, groups=groups)

    def attention(self, gap: Tensor) -> Tensor:
        """The splits' weights (N, radix * channels, 1, 1), split-major, which sum to one.

        ``gap`` (N, channels, 1, 1) is the splits' sum, averaged over the image.
        """
        weights = self.fc2(self.relu(self.bn1(self.fc1(gap))))
        return split_shares(weights, self.radix, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``x`` (N, in_channels, H, W) to (N, channels, H', W')."""
        x = self.conv(x)
        x = self.relu(self.dropblock(self.bn0(x)))
        if self.radix == 1:
            return x * self.attention(F.adaptive_avg_pool2d(x, 1))
        splits = x.chunk(self.radix, dim=1)
        total = splits[0] + splits[1]
        for split in splits[2:]:
            total = total + split
        # Under autocast softmax returns float32, and so would all that is made with it.
        shares = self.attention(F.adaptive_avg_pool2d(total, 1)).to(x.dtype)
        weights = shares.chunk(self.radix, dim=1)
        out = splits[0] * weights[0]
        for split, weight in zip(splits[1:], weights[1:], strict=True):
            out = out + split * weight
        return out


def split_shares(weights: Tensor, radix: int, groups: int) -> Tensor:
    """Shares of the splits from the gate's output, both (N, radix * channels, 1, 1).

    The gate's channels are grouped by cardinality first, the shares by radix first.
    """
    if radix == 1:
        return torch.sigmoid(weights)
    batch = weights.shape[0]
    weights = weights.view(batch, groups, radix, -1).transpose(1, 2)
    return F.softmax(weights, dim=1).reshape(batch, -1, 1, 1)


def _gate_norm_cfg(norm_cfg: Mapping[str, Any], channels: int, groups: int) -> Mapping[str, Any]:
    """Group norm's groups for the gate, whose feature map is one pixel.

    With as many groups as usual a group may hold a single value, and its norm would be a
    constant that cuts the gate off from the image; each cardinal group is normalised as a whole.
    """
    if norm_cfg.get("type") != "GN":
        return norm_cfg
    return {**norm_cfg, "num_groups": gcd(groups, channels)}
