# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Other people's runtimes, given a module of this package: what a user could pick instead."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Work
from torch import Tensor, nn

from mmseg_resnest.io.memory import keep_freed_memory


def compiled(module: nn.Module, images: Tensor) -> Work:
    """torch.compile with frozen weights."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    keep_freed_memory()
    return in_torch(torch.compile(module.to(images.device)), images)


def in_torch(module: Callable[[Tensor], Tensor], images: Tensor) -> Work:
    """The module as it is."""

    @torch.inference_mode()
    def work() -> Tensor:
        return module(images)

    return work


def onnx_runtime(module: nn.Module, images: Tensor) -> Work:
    """ONNX Runtime, with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = _exported(module, images, folder)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    array = images.cpu().numpy()
    return lambda: torch.from_numpy(session.run(None, {"images": array})[0])


def openvino(module: nn.Module, images: Tensor) -> Work:
    """OpenVINO in float32, which has to be asked for, with as many threads as torch."""
    import openvino as package

    with tempfile.TemporaryDirectory() as folder:
        network = package.Core().read_model(_exported(module, images, folder))
        network = package.compile_model(
            network,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
    array = images.cpu().numpy()
    return lambda: torch.from_numpy(network([array])[0].copy())


def _exported(module: nn.Module, images: Tensor, folder: str) -> str:
    path = str(Path(folder) / "model.onnx")
    torch.onnx.export(module.cpu(), (images.cpu(),), path, input_names=["images"], dynamo=False)
    return path


def ways(
    build: Callable[[], nn.Module], images: Callable[[str], Tensor]
) -> tuple[dict[str, Callable[[str], Work]], dict[str, str]]:
    """The runtimes that this machine has.

    Args:
        build: Makes the module, in evaluation mode.
        images: A case to what the module is given.

    Returns:
        Name to a variant, and name to why it is missing.
    """
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}

    def add(name: str, runtime: Callable[[nn.Module, Tensor], Work]) -> None:
        found[name] = lambda case: runtime(build(), images(case))

    if shutil.which("g++") or shutil.which("clang++"):
        add("torch.compile, frozen", compiled)
    else:
        missing["torch.compile"] = "it needs a C++ compiler, which is missing"
    for name, package, runtime in (
        ("ONNX Runtime", "onnxruntime", onnx_runtime),
        ("OpenVINO", "openvino", openvino),
    ):
        if importlib.util.find_spec(package):
            add(name, runtime)
        else:
            missing[name] = "not installed"
    return found, missing
