# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""State dicts in each code base's names, written down a second time and without torch models.

The package has tables; here the names are made by the rules that the code bases' own model
definitions follow, so that a slip in a table shows. Tensors are tiny: conversion does not look
at sizes.
"""

from __future__ import annotations

import re
import zlib

import torch
from torch import Tensor

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def value(name: str, ndim: int) -> Tensor:
    """Numbers that only the tensor of this name has."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(zlib.crc32(name.encode()), dtype=torch.int64)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.rand([2] * ndim, generator=generator)


def conv(name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": value(f"{name}.weight", 4)}


def linear(name: str) -> dict[str, Tensor]:
    return {**conv(name), f"{name}.bias": value(f"{name}.bias", 1)}


def norm(name: str, counters: bool = True) -> dict[str, Tensor]:
    leaves = NORM if counters else NORM[:-1]
    return {f"{name}.{leaf}": value(f"{name}.{leaf}", 1) for leaf in leaves}


def backbone(blocks=(1, 2, 1, 1), counters=True, split=True, fc=False) -> dict[str, Tensor]:
    """Published names (those of ``zhanghang1989/ResNeSt`` and of timm)."""
    result: dict[str, Tensor] = {}
    for index in (0, 1, 3, 4, 6):
        name = f"conv1.{index}"
        result.update(norm(name, counters) if index in (1, 4) else conv(name))
    result.update(norm("bn1", counters))
    for stage, count in enumerate(blocks, 1):
        for index in range(count):
            start = f"layer{stage}.{index}"
            result.update(conv(f"{start}.conv1"))
            result.update(norm(f"{start}.bn1", counters))
            if split:
                result.update(conv(f"{start}.conv2.conv"))
                result.update(norm(f"{start}.conv2.bn0", counters))
                result.update(linear(f"{start}.conv2.fc1"))
                result.update(norm(f"{start}.conv2.bn1", counters))
                result.update(linear(f"{start}.conv2.fc2"))
            else:
                result.update(conv(f"{start}.conv2"))
                result.update(norm(f"{start}.bn2", counters))
            result.update(conv(f"{start}.conv3"))
            result.update(norm(f"{start}.bn3", counters))
            if index == 0:
                result.update(conv(f"{start}.downsample.1"))
                result.update(norm(f"{start}.downsample.2", counters))
    if fc:
        result.update(linear("fc"))
    return result


def published_head(kind: str, counters: bool = True, laterals: int = 0, se: bool = True) -> dict:
    """Published names of a head, without ``head.``."""
    result: dict[str, Tensor] = {}
    if kind == "fcn":
        result.update(conv("conv5.0"))
        result.update(norm("conv5.1", counters))
        result.update(linear("conv5.4"))
    elif kind == "psp":
        for index in (1, 2, 3, 4):
            result.update(conv(f"conv5.0.conv{index}.0"))
            result.update(norm(f"conv5.0.conv{index}.1", counters))
        result.update(conv("conv5.1"))
        result.update(norm("conv5.2", counters))
        result.update(linear("conv5.5"))
    elif kind == "deeplab":
        for branch in ("b0.0", "b1.0", "b2.0", "b3.0", "b4.gap.1", "project.0"):
            result.update(conv(f"aspp.{branch}"))
            stem, _, index = branch.rpartition(".")
            result.update(norm(f"aspp.{stem}.{int(index) + 1}", counters))
        result.update(conv("block.0"))
        result.update(norm("block.1", counters))
        result.update(linear("block.4"))
    else:
        result.update(conv("conv5.0"))
        result.update(norm("conv5.1", counters))
        for index in range(laterals):
            result.update(conv(f"connect.{index}.0"))
            result.update(norm(f"connect.{index}.1", counters))
        if laterals:
            result.update(conv("fusion.0"))
            result.update(norm("fusion.1", counters))
        result.update(conv("encmodule.encoding.0"))
        result.update(norm("encmodule.encoding.1", counters))
        for leaf, ndim in (("codewords", 2), ("scale", 1)):
            name = f"encmodule.encoding.3.{leaf}"
            result[name] = value(name, ndim)
        result.update(norm("encmodule.encoding.4", counters))
        result.update(linear("encmodule.fc.0"))
        if se:
            result.update(linear("encmodule.selayer"))
        result.update(linear("conv6.1"))
    return result


def published_segmentor(kind: str, auxiliary=True, fc=False, **options) -> dict[str, Tensor]:
    """Names of a model of ``zhanghang1989/PyTorch-Encoding``."""
    counters = options.get("counters", True)
    body = backbone(options.pop("blocks", (1, 2, 1, 1)), counters, fc=fc)
    head = published_head(kind, **options)
    result = {f"pretrained.{key}": tensor for key, tensor in body.items()}
    result.update({f"head.{key}": tensor for key, tensor in head.items()})
    if auxiliary:
        extra = published_head("fcn", counters)
        # other numbers than the main head's
        result.update({f"auxlayer.{key}": tensor + 1 for key, tensor in extra.items()})
    return result


def openmmlab_name(key: str) -> str:
    """A published backbone's key in MMSegmentation."""
    if key.startswith("bn1."):
        return "stem.7." + key[4:]
    return re.sub(r"^conv1\.", "stem.", key)


def mmpretrain_name(key: str) -> str:
    """A published backbone's key in MMPretrain: a stem of ConvModules, no pool at stride 1."""
    if key.startswith("bn1."):
        return "backbone.stem.2.bn." + key[4:]
    if match := re.match(r"conv1\.(\d)\.(.*)", key):
        index, leaf = int(match[1]), match[2]
        return f"backbone.stem.{index // 3}.{('conv', 'bn')[index % 3]}.{leaf}"
    if key.startswith("fc."):
        return f"head.{key}"
    key = key.replace("layer1.0.downsample.1.", "layer1.0.downsample.0.")
    key = key.replace("layer1.0.downsample.2.", "layer1.0.downsample.1.")
    return f"backbone.{key}"


def to_gluon(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published checkpoint (backbone, FCN or DeepLabV3) as GluonCV saves it."""
    norms = {key.rpartition(".")[0] for key in state_dict if key.endswith("running_mean")}
    result = {}
    for key, tensor in state_dict.items():
        module, _, leaf = key.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        if module in norms:
            leaf = {"weight": "gamma", "bias": "beta"}.get(leaf, leaf)
        module = module.removeprefix("pretrained.")
        module = module.replace(".conv2.bn0", ".conv2.bn")
        module = re.sub(r"^(head|auxlayer)\.conv5\.", r"\1.block.", module)
        module = re.sub(r"^head\.aspp\.b(\d)\.", r"head.aspp.concurent.\1.", module)
        result[f"{module}.{leaf}"] = tensor
    return result
