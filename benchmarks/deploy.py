# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A model in PyTorch, what tools/export_onnx.py makes of it, and the engines of ``--engine``.

From a uint8 image to its label map; all variants are called through the same Python API with the
same image. Weights are random, which does not change the speed, with the classifier's scaled so
that all classes occur. Labels in 8 bits and bfloat16 are not compared: ``tools/export_onnx.py
--int8`` measures their loss on trained weights, ``--engine`` on the first image.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import ROOT, Comparison, Work
from numpy.typing import NDArray
from torch import Tensor

from mmseg_resnest import load_segmentor
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.errors import UserError
from mmseg_resnest.export import export_model
from mmseg_resnest.export.int8 import quantise
from mmseg_resnest.inference import Segmentor
from mmseg_resnest.inference.engine import choose_engine, prepare_engine
from mmseg_resnest.io.memory import keep_freed_memory
from mmseg_resnest.runtimes import ENGINES, Choice
from mmseg_resnest.runtimes.samples import drawn_picture

# config, height and width of the image; the last one is for the engines
CASES = {
    "fcn_resnest14_camvid, 360x480": ("fcn_resnest14_camvid", 360, 480),
    "deeplabv3_resnest50_ade20k, 375x500": ("deeplabv3_resnest50_ade20k", 375, 500),
    "deeplabv3_resnest101_ade20k, 512x512": ("deeplabv3_resnest101_ade20k", 512, 512),
}


def _model(case: str) -> tuple[Segmentor, NDArray[np.uint8]]:
    name, height, width = CASES[case]
    torch.manual_seed(0)
    model = load_segmentor(load_config(ROOT / "configs" / f"{name}.py"), None, "cpu")
    image = drawn_picture(height, width)
    net: Any = model.model
    for module in net.modules():
        if hasattr(module, "running_mean"):
            module.momentum = None  # the statistics of one image, so that nothing runs away
            module.train()
    with torch.no_grad():
        data = net.data_preprocessor({"inputs": [_pixels(image), _pixels(image[::-1])]}, False)
        scores = net.encode_decode(data["inputs"], [dict(img_shape=data["inputs"].shape[2:])] * 2)
        net.eval()
        torch.nn.init.normal_(net.decode_head.conv_seg.weight)
        scores = net.encode_decode(data["inputs"], [dict(img_shape=data["inputs"].shape[2:])] * 2)
        spread, mean = scores.std((0, 2, 3)), scores.mean((0, 2, 3))
        net.decode_head.conv_seg.weight /= spread[:, None, None, None]
        net.decode_head.conv_seg.bias.copy_((net.decode_head.conv_seg.bias - mean) / spread)
    return model, image


def _pixels(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))


def _work(model: Segmentor, image: NDArray[np.uint8]) -> Work:
    return lambda: torch.from_numpy(model(image).labels)


def eager(case: str) -> Work:
    return _work(*_model(case))


def _exported(suffix: str, processing: bool = False, int8: bool = False) -> Any:
    def variant(case: str) -> Work:
        model, image = _model(case)
        folder = tempfile.TemporaryDirectory()  # held by the work below
        path = export_model(model, Path(folder.name) / f"model{suffix}", processing)
        if int8:
            path = quantise(path, Path(folder.name) / "int8.onnx", [image, image[:, ::-1]])
        other = load_segmentor(path, trust=True)  # written here
        if int8:
            return lambda folder=folder: other(image) and None
        return lambda folder=folder: torch.from_numpy(other(image).labels)

    return variant


def _engine(engine: str, precision: str) -> Callable[[str], Work]:
    """As ``mmseg-resnest predict --engine``, which folds what torch computes."""

    def variant(case: str) -> Work:
        keep_freed_memory()
        model, image = _model(case)
        choose_engine(model, Choice(engine, precision))
        prepare_engine(model, [image])
        model.fold()
        return _work(model, image)

    return variant


FILES: dict[str, Callable[[str], Work]] = {
    "ONNX Runtime": _exported(".onnx"),
    "ONNX Runtime, processing in the file": _exported(".onnx", processing=True),
    "ONNX Runtime, 8 bits": _exported(".onnx", int8=True),
    "TorchScript": _exported(".torchscript"),
    "torch.export": _exported(".pt2"),
    "OpenVINO": _exported(".xml"),
}
CHOICES = {
    f"--engine {engine} --precision {precision}": (engine, precision)
    for engine, precisions in ENGINES.items()
    for precision in precisions
    if precision != "int8"
}
VARIANTS = {"PyTorch": eager, **FILES, **{name: _engine(*one) for name, one in CHOICES.items()}}
MISSING = {}
for name in FILES:
    package = name.partition(",")[0].replace(" ", "").lower()
    if package in ("onnxruntime", "openvino") and importlib.util.find_spec(package) is None:
        MISSING[name] = f"{package} is not installed"
for name, choice in CHOICES.items():
    try:
        Choice(*choice)
    except UserError as error:
        MISSING[name] = error.text
for name in MISSING:
    del VARIANTS[name]


def agree(expected: Tensor, labels: Tensor | None) -> float:
    return 1.0 if labels is None else float((expected == labels).double().mean())


COMPARISON = Comparison(
    title="Exported models and engines: uint8 image to label map",
    reference="PyTorch",
    cases={
        case: f"{name}, {height}x{width}, one image at a time, on the CPU"
        for case, (name, height, width) in CASES.items()
    },
    variants=VARIANTS,
    agree=agree,
    missing=MISSING,
    remarks={name: "labels are not compared" for name in VARIANTS if name.endswith("bf16")},
    left_out={case: FILES if "resnest101" in case else CHOICES for case in CASES},
    repeats=5,
    note="Random weights, so more pixels are close calls than after training. Equal is not "
    "measured for the 8-bit file.",
)
