# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Layers of PyTorch in a form that exporters follow for images of any size.

Exporters take the sizes of the sample for those of all images where PyTorch's or MMSegmentation's
code reads them as numbers: in the bins of a pool, in the reshapes of ``nn.MultiheadAttention``, and
in the layer that enlarges maps (of HRNet, UNet, and the heads FPNHead and SETRUPHead).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.utils import Upsample
from torch import Tensor, nn

from ..errors import UserError

__all__ = ["keep_sizes_free"]


def keep_sizes_free(net: nn.Module, attention: bool = True) -> None:
    """Replace such layers of a network, in place; the parameters stay the same.

    Args:
        net: The network.
        attention: Whether attention is replaced, which ``torch.compile`` follows as it is.

    Raises:
        UserError: An attention has options that no layer of the stack uses.
    """
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, _pool(child))
            elif isinstance(child, Upsample) and not child.size:
                setattr(module, name, _Enlarged(child))
            elif attention and isinstance(child, nn.MultiheadAttention):
                setattr(module, name, _Attention(child))


class _BinPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` for maps of any size.

    Exporters take the size of the sample for the sizes of the bins. Here the bins' bounds,
    floor(i * H / n) to ceil((i + 1) * H / n) as in PyTorch, are part of the graph.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    @staticmethod
    def _shares(bins: int, length: Any, like: Tensor) -> Tensor:
        """(bins, length): the share of each place in the mean of each bin."""
        index = torch.arange(bins, device=like.device)
        # No negative numbers: exporters differ in how they round them.
        start = torch.div(index * length, bins, rounding_mode="floor")
        end = torch.div((index + 1) * length + (bins - 1), bins, rounding_mode="floor")
        place = torch.arange(length, device=like.device)
        inside = (place >= start[:, None]) & (place < end[:, None])
        return inside.to(like.dtype) / (end - start)[:, None].to(like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, rows, columns) means of ``x`` (N, C, H, W)."""
        rows = self._shares(self.rows, x.shape[2], x)
        columns = self._shares(self.columns, x.shape[3], x)
        return rows @ x @ columns.t()


def _pool(pool: nn.AdaptiveAvgPool2d) -> nn.Module:
    size = pool.output_size
    rows, columns = size if isinstance(size, tuple) else (size, size)
    if rows is None or columns is None or (rows, columns) == (1, 1):
        return pool  # a mean over all, which exporters know
    return _BinPool(rows, columns)


class _Enlarged(nn.Module):
    """MMSegmentation's ``Upsample`` by a factor, for maps of any size."""

    def __init__(self, layer: Upsample) -> None:
        super().__init__()
        self.factor, self.mode, self.corners = layer.scale_factor, layer.mode, layer.align_corners

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H * factor, W * factor), rounded down, of ``x`` (N, C, H, W)."""
        edges = x.shape[2:]
        if float(self.factor).is_integer():
            size = [edge * int(self.factor) for edge in edges]
        else:
            size = [int(edge * self.factor) for edge in edges]
        return F.interpolate(x, size, mode=self.mode, align_corners=self.corners)


class _Attention(nn.Module):
    """``nn.MultiheadAttention`` without masks, for sequences of any length.

    Takes and gives what that does; the weights of the attention are None.
    """

    #: ``nn.TransformerEncoderLayer`` reads it: None keeps it off a kernel that exporters lack.
    in_proj_bias = None

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        plain = (
            attention.kdim == attention.vdim == attention.embed_dim
            and attention.bias_k is None
            and attention.bias_v is None
            and not attention.add_zero_attn
        )
        if not plain:
            raise UserError(
                "export", "config key model",
                "an attention with keys of another width, added keys or zeros cannot be exported",
            )  # fmt: skip
        self.heads, self.batch_first = attention.num_heads, attention.batch_first
        self.weight, self.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out = attention.out_proj

    def _by_heads(self, x: Tensor, part: int) -> Tensor:
        """(N, heads, L, C / heads) queries, keys or values of (N, L, C): part 0, 1 or 2."""
        channels = self.weight.shape[1]
        rows = slice(part * channels, (part + 1) * channels)
        x = F.linear(x, self.weight[rows], None if self.bias is None else self.bias[rows])
        return x.reshape(x.shape[0], x.shape[1], self.heads, channels // self.heads).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        """(N, L, C), or (L, N, C) without ``batch_first``, and None."""
        masks = [name for name in options if "mask" in name or name == "is_causal"]
        if any(options[name] is not None and options[name] is not False for name in masks):
            raise UserError("export", "config key model", "attention with masks cannot be exported")
        parts = [query, key, value]
        if not self.batch_first:
            parts = [x.transpose(0, 1) for x in parts]
        q, k, v = (self._by_heads(x, index) for index, x in enumerate(parts))
        weights = (q * (q.shape[-1] ** -0.5) @ k.transpose(2, 3)).softmax(-1)
        mixed = self.out((weights @ v).transpose(1, 2).flatten(2))
        return (mixed if self.batch_first else mixed.transpose(0, 1)), None
