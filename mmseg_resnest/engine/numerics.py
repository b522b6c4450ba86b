# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What decides how a run rounds, as plain data for its checkpoints and results.

==================  ==============================================================================
key                 what it says
==================  ==============================================================================
``fused``           config key ``numerics.fused``: whether steps may be fused
``fused_steps``     which ones are: ``matrix_products``, ``merged_pipeline``, ``folded_layers``
``precision``       ``float32``, ``float16`` with the kind of loss scale, ``bfloat16``, or the name
                    of another optimizer wrapper
``engine``          ``torch``; ``compile`` where the features of a step, or in testing the network,
                    are compiled by ``torch.compile``; ``onnxruntime`` or ``openvino`` with their
                    version
``float32_matmul``  torch's precision of matrix products: ``highest``, ``high`` or ``medium``; on
                    a GPU also whether cuDNN may use TF32
``memory_order``    ``contiguous`` or ``channels_last``
``world_size``      processes
``deterministic``   whether only deterministic algorithms run
``threads``         of torch, in each process
``device``          the GPU, or the instruction set and the maker of the CPU
``versions``        of Python, CUDA and the packages that compute
==================  ==============================================================================
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..io.processes import processor_maker
from ..kernels.convolution import ProductConv2d
from ..registry import type_name
from .facts import mappings

_MODULES = ("torch", "numpy", "cv2", "mmengine", "mmseg", "mmcv", "mmseg_resnest")
#: Installed or not, they decide which code computes.
_PACKAGES = (
    *("torchvision", "pillow", "mmsegmentation", "onedl-mmsegmentation", "imagecodecs"),
    "albumentations",
)
_MERGED = ("RandomResizeCrop", "RandomLongEdgeCrop")


def is_fused(cfg: Mapping[str, Any]) -> bool:
    """Config key ``numerics.fused``, True by default: whether steps may be fused.

    Without it the model's layers, memory order and pipeline are the stack's.
    """
    return (cfg.get("numerics") or {}).get("fused", True)


def numerics_of(cfg: Mapping[str, Any], world_size: int = 1) -> dict[str, Any]:
    """What is known of a run's numerics before its model is built.

    The keys of the table above but ``fused_steps``; ``memory_order`` is ``contiguous``.
    """
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"CPU ({torch.backends.cpu.get_cpu_capability()}) {processor_maker()}".strip()
    return {
        "fused": is_fused(cfg),
        "precision": precision_of(cfg.get("optim_wrapper")),
        "engine": "compile" if cfg.get("compile") else "torch",
        "float32_matmul": _float32_matmul(),
        "memory_order": "contiguous",
        "world_size": world_size,
        "deterministic": bool((cfg.get("randomness") or {}).get("deterministic", False)),
        "threads": torch.get_num_threads(),
        "device": device,
        "versions": versions(),
    }


def _float32_matmul() -> str:
    try:
        said = torch.get_float32_matmul_precision()
    except RuntimeError:  # newer settings of torch, which this one does not name
        said = "of several kinds"
    tf32 = torch.cuda.is_available() and torch.backends.cudnn.allow_tf32
    return f"{said}, TF32 in cuDNN" if tf32 else said


def versions() -> dict[str, str]:
    """Versions of Python, CUDA and the packages that compute, by name."""
    found = {
        "Python": platform.python_version(),
        "CUDA of torch": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()) if torch.cuda.is_available() else "None",
    }
    for name in _MODULES:
        found[name] = str(getattr(sys.modules.get(name), "__version__", "not loaded"))
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def precision_of(optim_wrapper: Any) -> str:
    """The precision of the forward pass that the config of an optimizer wrapper asks for.

    E.g. ``float32``, ``float16 (loss scale dynamic)``, ``bfloat16``; or the wrapper's name.
    """
    settings = optim_wrapper if isinstance(optim_wrapper, Mapping) else {}
    name = type_name(settings.get("type", "OptimWrapper"))
    if name == "AmpOptimWrapper":
        precision = settings.get("dtype") or "float16"
        return f"{precision} (loss scale {settings.get('loss_scale', 'dynamic')})"
    return {"OptimWrapper": "float32", "BFloat16OptimWrapper": "bfloat16"}.get(name, name)


def fused_steps_of(
    model: nn.Module,
    cfg: Mapping[str, Any],
    folded_layers: bool = False,
) -> list[str]:
    """The fused steps of a run; ``folded_layers``: batch norms are folded into convolutions."""
    modules = list(model.modules())
    types = {type_name(node.get("type")) for _, node in mappings(cfg.get("train_dataloader"))}
    steps = {
        "matrix_products": any(isinstance(module, ProductConv2d) for module in modules),
        "merged_pipeline": not types.isdisjoint(_MERGED),
        "folded_layers": folded_layers,
    }
    return [name for name, used in steps.items() if used]
