# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Other people's runtimes, given a module of this package: what a user could pick instead."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Work
from torch import Tensor, nn

from mmseg_resnest.io.memory import keep_freed_memory
from mmseg_resnest.runtimes.sessions import Session, open_onnx, open_openvino


def in_torch(module: Callable[[Tensor], Tensor], images: Tensor) -> Work:
    """The module as it is."""

    @torch.inference_mode()
    def work() -> Tensor:
        return module(images)

    return work


def _compiled(module: nn.Module, images: Tensor) -> Work:
    """torch.compile with frozen weights."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    keep_freed_memory()
    return in_torch(torch.compile(module.to(images.device)), images)


def _in_session(
    open_file: Callable[[Path, torch.device], Session],
) -> Callable[[nn.Module, Tensor], Work]:
    """An exported module, on the CPU in float32 with as many threads as torch."""

    def make(module: nn.Module, images: Tensor) -> Work:
        images = images.cpu()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            torch.onnx.export(module.cpu(), (images,), path, input_names=["images"], dynamo=False)
            run = open_file(path, images.device).run
        return lambda: run(images)

    return make


def variants(
    build: Callable[[], nn.Module], images: Callable[[str], Tensor]
) -> tuple[dict[str, Callable[[str], Work]], dict[str, str]]:
    """The runtimes that this machine has.

    Args:
        build: Makes the module, in evaluation mode.
        images: A case to what the module is given.

    Returns:
        Name to a variant, and name to why it is missing.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    runtimes = {
        "torch.compile, frozen": (_compiled, "" if compiler else "there is no C++ compiler"),
        "ONNX Runtime": (_in_session(open_onnx), _lacks("onnxruntime")),
        "OpenVINO": (_in_session(open_openvino), _lacks("openvino")),
    }
    found = {
        name: lambda case, runtime=runtime: runtime(build(), images(case))
        for name, (runtime, why) in runtimes.items()
        if not why
    }
    return found, {name: why for name, (_, why) in runtimes.items() if why}


def _lacks(package: str) -> str:
    return "" if importlib.util.find_spec(package) else "not installed"
