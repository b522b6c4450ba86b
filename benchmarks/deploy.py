# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A model in PyTorch, and what tools/export_onnx.py makes of it: uint8 image to label map.

All variants are called through the same Python API with the same image. Weights are random, which
does not change the speed, with the classifier's scaled so that all classes occur. Labels of the
8-bit file are not compared: ``tools/export_onnx.py --int8`` measures its loss on trained weights.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import ROOT, Comparison, Work
from numpy.typing import NDArray
from torch import Tensor

from mmseg_resnest import load_segmentor
from mmseg_resnest.engine.config import load_config
from mmseg_resnest.export import export_model
from mmseg_resnest.export.int8 import quantise
from mmseg_resnest.inference import Segmentor

# config, height and width of the image
CASES = {
    "fcn_resnest14_camvid, 360x480": ("fcn_resnest14_camvid", 360, 480),
    "deeplabv3_resnest50_ade20k, 375x500": ("deeplabv3_resnest50_ade20k", 375, 500),
}


def _image(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (height // 16 + 2, width // 16 + 2, 3))
    large = np.kron(coarse, np.ones((16, 16, 1)))[:height, :width]
    return (0.8 * large + 0.2 * rng.uniform(0, 255, large.shape)).astype(np.uint8)


def _model(case: str) -> tuple[Segmentor, NDArray[np.uint8]]:
    name, height, width = CASES[case]
    torch.manual_seed(0)
    model = load_segmentor(load_config(ROOT / "configs" / f"{name}.py"), None, "cpu")
    image = _image(height, width)
    net: Any = model.model
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
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
    def way(case: str) -> Work:
        model, image = _model(case)
        folder = tempfile.TemporaryDirectory()  # held by the work below
        path = export_model(model, Path(folder.name) / f"model{suffix}", processing)
        if int8:
            path = quantise(path, Path(folder.name) / "int8.onnx", [image, image[:, ::-1]])
        other = load_segmentor(path, trust=True)  # written here
        if int8:
            return lambda folder=folder: other(image) and None
        return lambda folder=folder: torch.from_numpy(other(image).labels)

    return way


WAYS = {
    "PyTorch": eager,
    "ONNX Runtime": _exported(".onnx"),
    "ONNX Runtime, processing in the file": _exported(".onnx", processing=True),
    "ONNX Runtime, 8 bits": _exported(".onnx", int8=True),
    "TorchScript": _exported(".torchscript"),
    "torch.export": _exported(".pt2"),
    "OpenVINO": _exported(".xml"),
}
MISSING = {}
for package, names in (
    ("onnxruntime", [name for name in WAYS if name.startswith("ONNX")]),
    ("openvino", ["OpenVINO"]),
):
    if importlib.util.find_spec(package) is None:
        for name in names:
            del WAYS[name]
            MISSING[name] = f"{package} is not installed"


def agree(expected: Tensor, labels: Tensor | None) -> float:
    return 1.0 if labels is None else float((expected == labels).double().mean())


COMPARISON = Comparison(
    title="Exported models: uint8 image to label map",
    reference="PyTorch",
    cases={
        case: f"{name}, {height}x{width}, one image at a time, on the CPU"
        for case, (name, height, width) in CASES.items()
    },
    ways=WAYS,
    agree=agree,
    missing=MISSING,
    repeats=5,
    note="Random weights, so more pixels are close calls than after training. Equal is not "
    "measured for the 8-bit file.",
)
