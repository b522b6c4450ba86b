# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Inference of DeepLabV3 with ResNeSt-101, from normalised images to the head's scores.

MMSegmentation's variant at output stride 8, 150 classes, seeded weights, the same in every way. Of
this package are measured the layers as they are (plain) and what its tools compute on a CPU;
torch.compile and ONNX Runtime are given the plain layers. Compared are the labels of all pixels of
the images; besides, every score has to be the reference's to 1e-4 of the largest.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import Comparison, Work
from models import our_model, stock_model
from torch import Tensor, nn

from mmseg_resnest.engine.launch import keep_freed_memory
from mmseg_resnest.models import fold_for_inference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = (512, 512)
CASES = {
    "batch 1": "1 image of 512x512",
    "batch 8": "8 images of 512x512",
}


class _Scores(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model.decode_head(self.model.extract_feat(images))
        return scores.contiguous()


def _images(case: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(int(case.split()[1]), 3, *SIZE, generator=generator).to(DEVICE)


def _work(model: Callable[[Tensor], Tensor], case: str) -> Work:
    images = _images(case)

    @torch.inference_mode()
    def work() -> Tensor:
        return model(images)

    return work


def stack(case: str) -> Work:
    return _work(_Scores(stock_model(101)).to(DEVICE).eval(), case)


def plain(case: str) -> Work:
    """This package's layers as they are, with freed memory kept as the tools keep it."""
    keep_freed_memory()
    return _work(_Scores(our_model(101)).to(DEVICE).eval(), case)


def ours(case: str) -> Work:
    """What tools/test.py and tools/predict.py compute on a CPU."""
    keep_freed_memory()
    model = our_model(101).to(DEVICE)
    return _work(_Scores(fold_for_inference(model) if DEVICE == "cpu" else model).eval(), case)


def compiled(case: str) -> Work:
    keep_freed_memory()
    import torch._inductor.config as inductor

    inductor.freezing = True
    return _work(torch.compile(_Scores(our_model(101)).to(DEVICE).eval()), case)


def onnx_runtime(case: str) -> Work:
    import onnxruntime

    images = _images(case).cpu()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(
            _Scores(our_model(101)).eval(), (images,), path, input_names=["images"], dynamo=False
        )
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    array = images.numpy()
    return lambda: torch.from_numpy(session.run(None, {"images": array})[0])


def agree(expected: Tensor, scores: Tensor) -> float:
    """Share of equal labels of the images' pixels; none where a score is off by more than 1e-4."""
    if (scores - expected).abs().max() > 1e-4 * expected.abs().max():
        return 0.0
    equal = [
        (_labels(one) == _labels(other)).double().mean()
        for one, other in zip(expected.split(1), scores.split(1), strict=True)
    ]
    return float(sum(equal) / len(equal))


def _labels(scores: Tensor) -> Tensor:
    """Labels (N, 512, 512): scores resized as the stack resizes them, and the largest."""
    full = F.interpolate(scores.cpu(), size=SIZE, mode="bilinear", align_corners=False)
    return full.argmax(1)


WAYS: dict[str, Callable[[str], Work]] = {
    "MMSegmentation": stack,
    "mmseg-resnest, plain": plain,
    "mmseg-resnest": ours,
}
MISSING = {}
if shutil.which("g++") or shutil.which("clang++"):
    WAYS["torch.compile, frozen"] = compiled
else:
    MISSING["torch.compile"] = "it needs a C++ compiler, and there is none"
if importlib.util.find_spec("onnxruntime"):
    WAYS["ONNX Runtime"] = onnx_runtime
else:
    MISSING["ONNX Runtime"] = "not installed"
for name, package in (("OpenVINO", "openvino"), ("timm", "timm")):
    if importlib.util.find_spec(package) is None:
        MISSING[name] = "not installed"

COMPARISON = Comparison(
    title="Inference",
    reference="MMSegmentation",
    cases=CASES,
    ways=WAYS,
    agree=agree,
    least={"mmseg-resnest": 1.5},
    missing=MISSING,
    # With eight images a turn of each takes minutes.
    left_out={"batch 8": ("mmseg-resnest, plain", "torch.compile, frozen", "ONNX Runtime")},
    repeats=3,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
