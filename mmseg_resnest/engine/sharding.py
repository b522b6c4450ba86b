# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Fully sharded data parallel training, as a choice of the config.

``model_wrapper_cfg=dict(type="FSDP")`` in place of MMEngine's default, DistributedDataParallel:
weights, gradients and optimizer state are sharded over the processes (``fully_shard`` of
:mod:`torch.distributed.fsdp`; https://arxiv.org/abs/2304.11277). Checkpoints are complete, the same
files that one process writes, so that either choice and any number of processes continues them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast, get_world_size
from torch import Tensor, nn

from .._stack import copy_metadata
from ..errors import UserError
from ..registry import MODEL_WRAPPERS, type_name


@MODEL_WRAPPERS.register_module()
class FSDP:
    """Shards a model in place and returns it; no wrapper around it is left.

    The weights are initialised first, while they are complete, and are process 0's. The units that
    are gathered and freed together are the backbone's blocks; the rest is one more. With
    ``reshard_after_forward`` gathered weights are freed after the forward pass and gathered again
    for the backward pass: less memory, more traffic. The parameters become ``DTensor``s.
    """

    def __new__(cls, module: nn.Module, reshard_after_forward: bool = True) -> Any:
        """Shard the model."""
        # Importing them costs a second, which only those who shard should pay.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if hasattr(module, "init_weights"):
            cast(Any, module).init_weights()
        for value in module.state_dict().values():
            broadcast(value)
        mesh = init_device_mesh(get_device(), (get_world_size(),))
        stages = getattr(module, "backbone", module).children()
        blocks = [b for s in stages if isinstance(s, nn.Sequential) for b in s.children()]
        for unit in [*(block for block in blocks if list(block.children())), module]:
            fully_shard(unit, mesh=mesh, reshard_after_forward=reshard_after_forward)
        return module


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters of a model are sharded over the processes."""
    return any(_is_shard(parameter) for parameter in model.parameters())


def _is_shard(value: Any) -> bool:
    # A plain tensor has no full_tensor; torch.distributed.tensor need not be imported to know.
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def local(value: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return cast(Any, value).to_local() if _is_shard(value) else value


def gathered(value: Any) -> Any:
    """Nested dicts, lists and tuples with every sharded tensor gathered.

    All processes must call it with the same structure.
    """
    if _is_shard(value):
        return cast(Any, value).detach().full_tensor()
    if isinstance(value, dict):
        copy = type(value)((key, gathered(item)) for key, item in value.items())
        copy_metadata(value, copy)
        return copy
    if type(value) in (list, tuple):
        return type(value)(gathered(item) for item in value)
    return value


def shard_optimizer_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Shard the tensors of a complete optimizer state as its parameters are; in place."""
    from ..weights.load_into import sharded_like

    for theirs, ours in zip(state["param_groups"], optimizer.param_groups, strict=True):
        for index, parameter in zip(theirs["params"], ours["params"], strict=True):
            for name, value in state["state"].get(index, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                    state["state"][index][name] = sharded_like(value, parameter)


def check_sharding(cfg: Mapping[str, Any]) -> None:
    """Refuse config keys that do not go with ``FSDP``."""
    if type_name((cfg.get("model_wrapper_cfg") or {}).get("type")) != "FSDP":
        return
    hooks = cfg.get("custom_hooks") or []
    if any(type_name(hook.get("type")) == "EMAHook" for hook in hooks):
        raise UserError(
            "config-conflict",
            "config key custom_hooks",
            "EMAHook keeps a complete copy of the model on every process, which FSDP shards; "
            "remove the hook, or model_wrapper_cfg",
        )
    if type_name((cfg.get("optim_wrapper") or {}).get("type")) == "AmpOptimWrapper":
        raise UserError(
            "config-conflict",
            "config key optim_wrapper.type",
            "AmpOptimWrapper scales the loss of each process by itself; with FSDP use "
            "BFloat16OptimWrapper",
        )
