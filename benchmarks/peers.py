# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Networks that a user could take instead, with the 150 classes of ADE20K, and what each costs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from harness import ROOT, Work
from models import sgd_step
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmseg_resnest.engine.config import load_config
from mmseg_resnest.engine.model import build_model
from mmseg_resnest.weights.catalogue import find

SMP = "segmentation_models_pytorch"
#: Networks of the installed MMSegmentation, and their configs here.
ZOO = {"SegNeXt-B": "segnext_mscanb_ade20k", "SegFormer-B2": "segformer_mitb2_ade20k"}
REMARKS = {
    SMP: "DeepLabV3 and its encoder, timm's ResNeSt, are other networks: not compared",
    **{name: f"another network, configs/{config}.py: not compared" for name, config in ZOO.items()},
}


def missing(package: str) -> str:
    """Why a package cannot be imported; empty if it can."""
    try:
        importlib.import_module(package)
    except Exception as error:  # a torchvision that does not fit its torch raises RuntimeError
        return f"cannot be imported ({error}); benchmarks/peers.sh makes an environment for it"
    return ""


def smp_model(depth: int) -> nn.Module:
    """DeepLabV3 with ResNeSt-50 or -101 at output stride 8; images to scores at their size."""
    package: Any = importlib.import_module(SMP)
    torch.manual_seed(0)
    encoder = f"timm-resnest{depth}{'d' if depth == 50 else 'e'}"
    return package.DeepLabV3(encoder, encoder_weights=None, classes=150)


def zoo_model(name: str) -> nn.Module:
    """A segmentor of ``ZOO``, with random weights."""
    cfg = load_config(ROOT / "configs" / f"{ZOO[name]}.py")
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    return build_model(cfg)


def costs(build: Callable[[], nn.Module], size: tuple[int, int], weights: str) -> dict[str, Any]:
    """``parameters`` and ``flops`` of one image (two a multiply-add), and ``published`` mIoU.

    Args:
        build: Makes the network, images to scores.
        size: Height and width of the image.
        weights: Of the catalogue, whose scores these are; empty if there are none.
    """
    network = build().to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.empty(1, 3, *size, device="meta"))
    scores = find(weights).metrics.values() if weights else ()
    return {
        "parameters": sum(one.numel() for one in network.parameters()),
        "flops": counter.get_total_flops(),
        "published": " / ".join(f"{one['mIoU']:.2f}" for one in scores),
    }


def smp_step(model: Any, size: tuple[int, int], count: int) -> Work:
    """A training step of a plain module; see :func:`models.training_step`."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, *size, generator=generator).to(device)
    labels = torch.randint(0, 150, (count, *size), generator=generator).to(device)
    return sgd_step(model, lambda: nn.functional.cross_entropy(model(images), labels))
