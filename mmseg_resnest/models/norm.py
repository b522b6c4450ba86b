# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Normalisation layers: one builder, and a synchronised batch norm that runs everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from .._stack import BatchNorm, SyncBatchNormFunction
from ..errors import UserError
from ..registry import MODELS


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes whose gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        value = value.clone()
        dist.all_reduce(value, group=group)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


@MODELS.register_module()
class SyncBN(BatchNorm):
    """Batch norm whose statistics are those of the batches of all processes.

    Unlike :class:`torch.nn.SyncBatchNorm` it also trains on a CPU, alone or under ``torchrun``
    with gloo, so that a config written for many GPUs runs unchanged on a laptop. With one process
    it is plain batch norm. Arguments, parameters and buffers are those of ``torch.nn.BatchNorm2d``;
    ``process_group`` None is the default group.

    Raises:
        UserError: In training, when a channel has a single value over the whole batch (one image
            with a globally pooled feature), which has no variance.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncBN expects an input (N, C, ...), got {tuple(input.shape)}")

    def _world_size(self) -> int:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.process_group)

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``input`` (N, C, ...); same shape and dtype."""
        world_size = self._world_size()
        if self.training and world_size == 1 and input.numel() == input.shape[1]:
            raise UserError(
                "config-value",
                "config key train_dataloader.batch_size",
                "must be at least 2: batch norm cannot train on one globally pooled image",
            )
        if world_size == 1:
            return super().forward(input)
        self._check_input_dim(input)
        if self.momentum is None or not self.track_running_stats:
            raise UserError("argument", "norm_cfg", "SyncBN needs momentum and running statistics")
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        if input.is_cuda:
            group = self.process_group or dist.group.WORLD
            return SyncBatchNormFunction.apply(
                input, self.weight, self.bias, self.running_mean, self.running_var,
                self.eps, self.momentum, group, world_size,
            )  # fmt: skip
        return self._forward_cpu(input)

    def _forward_cpu(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.float()
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.new_tensor(float(x.numel() // x.shape[1]))
        dist.all_reduce(count, group=self.process_group)
        mean = _AllReduceSum.apply(x.sum(dims), self.process_group) / count
        centred = x - mean.view(shape)
        var = _AllReduceSum.apply(centred.square().sum(dims), self.process_group) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.momentum is not None
            unbiased = var * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(dtype)


def build_norm(norm_cfg: Mapping[str, Any], channels: int) -> nn.Module:
    """Builds the normalisation layer of ``norm_cfg`` for a number of channels.

    Names are looked up in this package's registry first, so that ``SyncBN`` is the one that also
    trains on a CPU.

    Raises:
        UserError: For an unknown type, or a number of groups that does not divide ``channels``.
    """
    cfg = dict(norm_cfg)
    if "type" not in cfg:
        raise UserError("argument", "norm_cfg.type", "is missing; for example dict(type='BN')")
    layer = MODELS.get(cfg["type"]) if isinstance(cfg["type"], str) else cfg["type"]
    if layer is None:
        raise UserError(
            "argument", "norm_cfg.type", f"{cfg['type']!r} is not known; use BN, SyncBN or GN"
        )
    if layer is nn.GroupNorm:
        groups = cfg.get("num_groups")
        if not isinstance(groups, int) or groups < 1 or channels % groups:
            raise UserError(
                "argument",
                "norm_cfg.num_groups",
                f"{groups} does not divide the {channels} channels of a layer",
            )
    cfg["type"] = layer
    return build_norm_layer(cfg, channels)[1]


@contextmanager
def frozen_batch_statistics(module: nn.Module) -> Iterator[None]:
    """Keeps the running statistics of every batch norm in ``module`` as they are.

    Activation checkpointing runs a block's forward pass a second time; without this the second
    run would move the running statistics twice for one batch.
    """
    names = ("num_batches_tracked", "running_mean", "running_var")
    norms = [m for m in module.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    saved = [{name: getattr(norm, name) for name in names} for norm in norms]
    try:
        for norm, buffers in zip(norms, saved, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, None if buffer is None else buffer.clone())
        yield
    finally:
        for norm, buffers in zip(norms, saved, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
