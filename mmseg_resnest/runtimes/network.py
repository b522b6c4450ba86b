# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A segmentor's network, from normalised images to scores, in a form that becomes a file."""

from __future__ import annotations

import copy
import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..engine.facts import flatten
from ..engine.numerics import versions
from ..errors import UserError
from ..io.up_to_date import fingerprint
from ..models import EncoderDecoder, fold_for_inference
from ..weights.hashes import tensor_digests
from . import files, free_sizes
from .files import write_onnx
from .free_sizes import keep_sizes_free

__all__ = [
    "ScoresNetwork", "content_key", "folded_copy", "versions_of_runtimes", "write_scores_network",
]  # fmt: skip

_RUNTIMES = ("onnx", "onnxruntime", "openvino")
_FREE = {0: "batch", 2: "height", 3: "width"}
#: Packages whose code is known by their versions; this one's changes without.
_KNOWN = ("torch", "mmcv", "mmengine", "mmseg")
_WRITERS = (files.__name__, free_sizes.__name__, __name__)
#: Keys of a model's config that do not reach the scores in evaluation.
_TRAINING = ("auxiliary_head", "init_cfg", "pretrained", "train_cfg")


class ScoresNetwork(nn.Module):
    """A copy of what gives a model's scores: normalised images (N, C, H, W) to (N, K, h, w).

    ``h`` and ``w`` are those of the head where all that follows it is one resize, else the images'.
    """

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        if isinstance(model.decode_head, nn.ModuleList):
            raise UserError(
                "export", "config key model.decode_head", "cascades of heads cannot be exported"
            )
        self.net = copy.deepcopy(model).cpu().float().eval()
        self.net.runtime = self.net.compiled = self.net.distillation = None
        self.net.data_preprocessor = nn.Identity()
        if getattr(self.net, "auxiliary_head", None) is not None:
            del self.net.auxiliary_head
        keep_sizes_free(self.net)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        return self.net.own_logits(images)


def folded_copy(model: EncoderDecoder) -> EncoderDecoder:
    """A copy of a model as it computes on a CPU, without its runtime."""
    folded = copy.deepcopy(model)
    folded.runtime = None
    fold_for_inference(folded)
    return folded


def write_scores_network(model: EncoderDecoder, channels: int, path: Path) -> None:
    """Write a model's :class:`ScoresNetwork` as ONNX; sizes stay free.

    ``channels`` are those of the images. Raises UserError where it cannot be exported.
    """
    # No edge is like another; multiples of 32, which some networks ask for.
    sample = torch.randn(2, channels, 160, 192, generator=torch.Generator().manual_seed(0))
    got = ("scores", {**_FREE, 1: None})
    outputs = int(model.out_channels)
    write_onnx(ScoresNetwork(model), sample, path, _FREE, got, {}, outputs)


def versions_of_runtimes() -> dict[str, str]:
    """The versions of what exports and runs files, as far as it is installed."""
    found = {}
    for name in _RUNTIMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def content_key(model: EncoderDecoder, cfg: Config) -> str:
    """A digest of all that decides the scores: weights, config, layers, code, versions."""
    config: Any = cfg.model
    while isinstance(config.get("module"), Mapping):  # test-time augmentation
        config = config["module"]
    left_out = {*_TRAINING, *(("test_cfg",) if model.resizes_plainly() else ())}
    plain = {key: value for key, value in config.items() if key not in left_out}
    weights = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("auxiliary_head.")
    }
    modules = {type(module).__module__ for module in model.modules()}
    own = sorted(name for name in modules if name.partition(".")[0] not in _KNOWN)
    paths = [getattr(sys.modules.get(name), "__file__", None) for name in (*own, *_WRITERS)]
    return fingerprint(
        tensor_digests(weights),
        dict(flatten(plain)),
        _layers(model),
        [Path(path) for path in paths if path and Path(path).is_file()],
        versions() | versions_of_runtimes(),
    )


def _layers(model: nn.Module) -> list[Any]:
    """Names and kinds of a model's layers, with their settings, which may not be the config's."""
    return [
        (name, type(layer).__qualname__, {k: v for k, v in vars(layer).items() if _decides(k, v)})
        for name, layer in model.named_modules()
        if not f"{name}.".startswith(("auxiliary_head.", "data_preprocessor."))
    ]


def _decides(name: str, value: object) -> bool:
    """Whether an attribute of a layer may decide what it computes in evaluation."""
    if isinstance(value, tuple):
        return all(_decides(name, one) for one in value)
    return isinstance(value, bool | int | float | str) and name[0] != "_" and name != "training"
