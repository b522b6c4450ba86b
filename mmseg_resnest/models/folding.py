# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Folds a model for inference on a CPU: the same scores in less time.

Batch norms become part of the convolutions before them, feature maps are channels last, the splits
of split attention are weighted in one pass, and wide 3x3 convolutions of stride 1 take fewer
products (:mod:`~mmseg_resnest.kernels.winograd`). Scores differ by rounding, about 1e-5 of the
largest.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .._stack import BatchNorm
from ..kernels.convolution import ProductConv2d
from ..kernels.winograd import convolve, saved
from .resnest import Bottleneck, ResNeSt
from .split_attention import SplitAttentionConv2d, split_shares

__all__ = ["FoldedConv2d", "fold_for_inference"]

# Below these the transforms take longer than the products that they save: channels of a group,
# pixels of all maps, which share the transform of the weights, and how many times the products
# direct convolution takes. An atrous rate of 12 on maps of 64 pixels, 1.4 times, does not pay.
_LEAST_CHANNELS = 128
_LEAST_PIXELS = 1024
_LEAST_SAVED = 2.5


class FoldedConv2d(nn.Module):
    """A convolution with the batch norm (its running statistics) and the ReLU that follow it."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None = None, relu: bool = False) -> None:
        super().__init__()
        weight, bias = conv.weight, conv.bias
        if isinstance(norm, BatchNorm):
            assert norm.running_mean is not None and norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                weight.double(),
                None if bias is None else bias.double(),
                norm.running_mean.double(), norm.running_var.double(), norm.eps,
                None if norm.weight is None else norm.weight.double(),
                None if norm.bias is None else norm.bias.double(),
            )  # fmt: skip
        dtype = conv.weight.dtype
        weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.groups = conv.groups
        self.relu = relu
        self._can_save = _can_save(conv)

    def _saves(self, x: Tensor) -> bool:
        """Whether products are saved where ``x`` is convolved."""
        count, _, height, width = x.shape
        return (
            self._can_save
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and count * height * width >= _LEAST_PIXELS
            and saved(height, width, self.dilation[0]) >= _LEAST_SAVED
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``x`` (N, C, H, W) to (N, O, H', W'), channels last."""
        if self._saves(x):
            return convolve(x, self.weight, self.bias, self.dilation[0], self.groups, self.relu)
        out = F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        return out.relu_() if self.relu else out

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        out, inner = self.weight.shape[:2]
        return f"{inner * self.groups}, {out}, kernel={tuple(self.weight.shape[2:])}" + (
            ", relu" if self.relu else ""
        )


class FoldedSplitAttention(nn.Module):
    """:class:`SplitAttentionConv2d` with its norms folded."""

    def __init__(self, split: SplitAttentionConv2d) -> None:
        super().__init__()
        self.radix, self.groups = split.radix, split.groups
        self.conv = FoldedConv2d(split.conv, split.bn0, relu=True)
        self.fc1 = FoldedConv2d(split.fc1, split.bn1, relu=True)
        self.fc2 = FoldedConv2d(split.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``x`` (N, in_channels, H, W) to (N, channels, H', W')."""
        x = self.conv(x)
        count, channels = x.shape[0], x.shape[1] // self.radix
        # The mean of the sum of the splits is the sum of their means: one pass, no sum in memory.
        means = x.mean((2, 3)).view(count, self.radix, channels).sum(1)
        weights = self.fc2(self.fc1(means.view(count, channels, 1, 1)))
        weights = split_shares(weights, self.radix, self.groups)
        if self.radix == 1:
            return x * weights
        splits, shares = x.chunk(self.radix, dim=1), weights.chunk(self.radix, dim=1)
        if self.radix == 2:  # the shares add up to one
            return torch.lerp(splits[1], splits[0], shares[0])
        out = splits[0] * shares[0]
        for split, share in zip(splits[1:], shares[1:], strict=True):
            out.addcmul_(split, share)
        return out


class FoldedBottleneck(nn.Module):
    """:class:`Bottleneck` with its norms folded."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1 = FoldedConv2d(block.conv1, block.bn1, relu=True)
        self.avd_first, self.avd = block.avd_first, block.avd
        self.conv2 = FoldedSplitAttention(block.conv2)
        self.conv3 = FoldedConv2d(block.conv3, block.bn3)
        self.downsample: nn.Module = nn.Identity()
        if isinstance(block.downsample, nn.Sequential):
            pool, conv, norm = block.downsample
            assert isinstance(conv, nn.Conv2d)
            self.downsample = nn.Sequential(pool, FoldedConv2d(conv, norm))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``x`` (N, C, H, W) to (N, C', H', W')."""
        out = self.conv1(x)
        out = self.conv2(self.avd(out)) if self.avd_first else self.avd(self.conv2(out))
        return self.conv3(out).add_(self.downsample(x)).relu_()


def fold_for_inference(model: nn.Module) -> nn.Module:
    """Folds a model in evaluation mode, in place, and returns it.

    Folded are every :class:`ResNeSt` with batch norms and every ``ConvModule`` of a convolution, a
    batch norm and a ReLU. The parameters get other names, and the model cannot be trained any more.
    """
    child: Any
    for name, child in model.named_children():
        if isinstance(child, ResNeSt):
            if _folds(child):
                _fold_backbone(child)
        elif type(child) is not ConvModule:
            fold_for_inference(child)
        elif _is_plain(child):
            norm = child.norm if child.with_norm else None
            setattr(model, name, FoldedConv2d(child.conv, norm, relu=child.with_activation))
    return model


def _is_fixed(norm: Any) -> bool:
    """Whether a norm is a batch norm that uses its running statistics."""
    return isinstance(norm, BatchNorm) and norm.running_mean is not None and not norm.training


def _folds(backbone: ResNeSt) -> bool:
    return all(
        _is_fixed(module)
        for module in backbone.modules()
        if isinstance(module, BatchNorm | nn.GroupNorm | nn.LayerNorm)
    ) and all(
        isinstance(block, Bottleneck) and isinstance(block.conv2, SplitAttentionConv2d)
        for stage in range(len(backbone.stage_channels))
        for block in getattr(backbone, f"layer{stage + 1}")
    )


def _fold_backbone(backbone: ResNeSt) -> None:
    first, norm1, _, second, norm2, _, third = backbone.conv1
    stem = []
    for conv, norm in ((first, norm1), (second, norm2), (third, backbone.bn1)):
        assert isinstance(conv, nn.Conv2d)
        stem.append(FoldedConv2d(conv, norm, relu=True))
    backbone.conv1 = nn.Sequential(*stem)
    for name in ("bn1", "relu"):
        setattr(backbone, name, nn.Identity())
    for stage in range(len(backbone.stage_channels)):
        blocks = getattr(backbone, f"layer{stage + 1}")
        folded = nn.Sequential(*(FoldedBottleneck(block) for block in blocks))
        setattr(backbone, f"layer{stage + 1}", folded)


def _is_plain(module: ConvModule) -> bool:
    """Whether a module is a convolution, a fixed batch norm and a ReLU, the last two if any."""
    return (
        type(module.conv) in (nn.Conv2d, ProductConv2d)
        and module.conv.padding_mode == "zeros"
        and not isinstance(module.conv.padding, str)
        and not module.with_explicit_padding
        and not module.with_spectral_norm
        and module.order == ("conv", "norm", "act")
        and (not module.with_norm or _is_fixed(module.norm))
        and (not module.with_activation or type(module.activate) is nn.ReLU)
    )


def _can_save(conv: nn.Conv2d) -> bool:
    """Whether a convolution is one whose products can be saved, and has enough channels."""
    size = conv.dilation[0]
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.dilation == conv.padding == (size, size)
        and conv.padding_mode == "zeros"
        and min(conv.in_channels, conv.out_channels) // conv.groups >= _LEAST_CHANNELS
    )
