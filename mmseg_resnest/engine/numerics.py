# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What decides how a run rounds, as plain data for its checkpoints and results.

==================  ==============================================================================
key                 what it says
==================  ==============================================================================
``fused``           whether steps may be fused; False is ``--plain``
``fused_steps``     which ones are: ``matrix_products``, ``merged_pipeline``, ``folded_layers``
``precision``       ``float32``, ``float16`` with the kind of loss scale, ``bfloat16``, or the name
                    of another optimizer wrapper
``memory_order``    ``contiguous`` or ``channels_last``
``world_size``      processes
``deterministic``   whether only deterministic algorithms run
``threads``         of torch, in each process
``device``          the GPU, or the instruction set of the CPU
``versions``        of Python, CUDA and the packages that compute
==================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..kernels.convolution import ProductConv2d
from ..registry import type_name
from .run_record import flatten, versions

__all__ = ["fused_steps_of", "numerics_of", "precision_of"]

_MERGED = ("RandomResizeCrop", "RandomLongEdgeCrop")


def numerics_of(cfg: Mapping[str, Any], world_size: int = 1, plain: bool = False) -> dict[str, Any]:
    """What is known of a run's numerics before its model is built.

    Args:
        cfg: A config, or an empty mapping.
        world_size: Number of processes.
        plain: Whether no steps may be fused.

    Returns:
        The keys of the table above but ``fused_steps``; ``memory_order`` is ``contiguous``.
    """
    installed = versions()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    return {
        "fused": not plain,
        "precision": precision_of(cfg.get("optim_wrapper")),
        "memory_order": "contiguous",
        "world_size": world_size,
        "deterministic": bool((cfg.get("randomness") or {}).get("deterministic", False)),
        "threads": torch.get_num_threads(),
        "device": device,
        "versions": installed,
    }


def precision_of(optim_wrapper: Any) -> str:
    """The precision of the forward pass that an optimizer wrapper asks for.

    Args:
        optim_wrapper: Its config, or None.

    Returns:
        E.g. ``float32``, ``float16 (loss scale dynamic)``, ``bfloat16``; for a wrapper of another
        kind its name.
    """
    settings = optim_wrapper if isinstance(optim_wrapper, Mapping) else {}
    name = type_name(settings.get("type", "OptimWrapper"))
    if name == "OptimWrapper":
        return "float32"
    if name == "BFloat16OptimWrapper":
        return "bfloat16"
    if name == "AmpOptimWrapper":
        precision = settings.get("dtype") or "float16"
        return f"{precision} (loss scale {settings.get('loss_scale', 'dynamic')})"
    return name


def fused_steps_of(
    model: nn.Module,
    cfg: Mapping[str, Any],
    folded_layers: bool = False,
) -> list[str]:
    """The fused steps that a run uses.

    Args:
        model: The model, wrapped or not.
        cfg: The config that the run was built from.
        folded_layers: Whether batch norms were folded into convolutions.
    """
    modules = list(model.modules())
    types = {
        type_name(text.strip("'"))
        for key, text in flatten(cfg.get("train_dataloader") or {})
        if key.endswith("type")
    }
    steps = {
        "matrix_products": any(isinstance(module, ProductConv2d) for module in modules),
        "merged_pipeline": not types.isdisjoint(_MERGED),
        "folded_layers": folded_layers,
    }
    return [name for name, used in steps.items() if used]
