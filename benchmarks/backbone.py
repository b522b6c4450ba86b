# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The published ResNeSt-50 at output stride 8, from an image to its last feature map.

The authors' network is their package's, with seeded weights, which all the others were given.
torch.compile, ONNX Runtime and OpenVINO run this package's layers as they are (plain). timm's
network is the encoder of segmentation_models_pytorch, too.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from exactness import published, stages, timm
from harness import Comparison, Work
from models import stock_backbone
from peers import missing
from runtimes import in_torch, variants
from torch import Tensor, nn

from mmseg_resnest.io.memory import keep_freed_memory
from mmseg_resnest.models import ARCHITECTURES, ResNeSt, fold_for_inference
from mmseg_resnest.registry import MODELS

ARCH = "resnest50"
AUTHORS = f"resnest {version('resnest')}"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class _Last(nn.Module):
    """A network that gives its stages, of which the last is wanted."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        last: Tensor = self.network(images)[-1]
        return last.contiguous()


def _images(case: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, 512, 512, generator=generator).to(DEVICE)


def _state() -> dict[str, Tensor]:
    state = published(ARCH, 8).state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def _ours() -> nn.Module:
    model = ResNeSt(ARCH, output_stride=8)
    model.load_state_dict(_state())
    return model.eval()


def authors(case: str) -> Work:
    network = published(ARCH, 8).to(DEVICE)
    return in_torch(lambda images: stages(network, images)[-1], _images(case))


def stack(case: str) -> Work:
    columns = ARCHITECTURES[ARCH]
    torch.manual_seed(0)
    network = _Last(MODELS.build(stock_backbone(columns, 50))).to(DEVICE).eval()
    return in_torch(network, _images(case))


def of_timm(case: str) -> Work:
    network = timm(ARCH, 8, _state(), DEVICE)
    if isinstance(network, str):
        raise RuntimeError(network)
    return in_torch(lambda images: network(images)[-1], _images(case))


def plain(case: str) -> Work:
    """This package's layers as they are, with freed memory kept as the tools keep it."""
    keep_freed_memory()
    return in_torch(_Last(_ours()).to(DEVICE).eval(), _images(case))


def folded(case: str) -> Work:
    """What tools/test.py and tools/predict.py compute on a CPU."""
    keep_freed_memory()
    model = _Last(_ours()).to(DEVICE).eval()
    return in_torch(fold_for_inference(model) if DEVICE == "cpu" else model, _images(case))


def agree(expected: Tensor, result: Tensor) -> float:
    """1 where every value is the reference's to 1e-4 of the largest, otherwise 0."""
    return float((result - expected).abs().max() <= 1e-4 * expected.abs().max())


_found, MISSING = variants(lambda: _Last(_ours()).eval(), _images)
VARIANTS: dict[str, Callable[[str], Work]] = {
    AUTHORS: authors,
    "MMSegmentation": stack,
    "mmseg-resnest, plain": plain,
    "mmseg-resnest": folded,
    **_found,
}
OTHER = "once it is dilated, another network (benchmarks/exactness.py): not compared"
if why := missing("timm"):
    MISSING["timm"] = why
else:
    VARIANTS["timm"] = of_timm

COMPARISON = Comparison(
    title="Backbone",
    reference=AUTHORS,
    cases={"512x512": "1 image of 512x512, float32"},
    variants=VARIANTS,
    agree=agree,
    missing=MISSING,
    remarks={"MMSegmentation": OTHER, "timm": OTHER},
    repeats=5,
    note=(__doc__ or "").split("\n\n", 1)[1].replace("\n", " ").strip(),
)
