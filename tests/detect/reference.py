# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A two-stage detector in plain PyTorch, straight from a published state dict.

It reads the names of detectron2-ResNeSt or of MMDetection's zoo, and shares no code with the
library, MMDetection or mmcv. Sources: detectron2's model definitions and RoIAlign (aligned, as many
samples as the bin has pixels), and the ResNeSt paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_UP = "backbone.bottom_up."
#: Where each code base has a module and the norm behind it.
NAMES: dict[str, dict[str, Callable[..., Any]]] = {
    "detectron2": dict(
        stem=lambda i: (f"{_UP}stem.conv1_{i + 1}", f"{_UP}stem.conv1_{i + 1}.norm"),
        plain_stem=lambda: (f"{_UP}stem.conv1", f"{_UP}stem.conv1.norm"),
        block=lambda s, i: f"{_UP}res{s + 2}.{i}",
        norm=lambda i: f"conv{i}.norm",
        shortcut=lambda: ("shortcut", "shortcut.norm"),
        lateral=lambda i: (f"backbone.fpn_lateral{i + 2}", f"backbone.fpn_lateral{i + 2}.norm"),
        output=lambda i: (f"backbone.fpn_output{i + 2}", f"backbone.fpn_output{i + 2}.norm"),
        rpn=lambda part: (
            "proposal_generator.rpn_head."
            + dict(conv="conv", cls="objectness_logits", reg="anchor_deltas")[part]
        ),
        box=lambda k, i: (
            f"roi_heads.box_head{k}.conv{i + 1}",
            f"roi_heads.box_head{k}.conv{i + 1}.norm",
        ),
        fc=lambda k: f"roi_heads.box_head{k}.fc1",
        cls=lambda k: f"roi_heads.box_predictor{k}.cls_score",
        reg=lambda k: f"roi_heads.box_predictor{k}.bbox_pred",
        mask=lambda k, i: (
            f"roi_heads.mask_head.mask_fcn{i + 1}",
            f"roi_heads.mask_head.mask_fcn{i + 1}.norm",
        ),
        deconv=lambda k: "roi_heads.mask_head.deconv",
        predictor=lambda k: "roi_heads.mask_head.predictor",
    ),
    "mmdet": dict(
        stem=lambda i: (f"backbone.stem.{3 * i}", f"backbone.stem.{3 * i + 1}"),
        plain_stem=lambda: ("backbone.conv1", "backbone.bn1"),
        block=lambda s, i: f"backbone.layer{s + 1}.{i}",
        norm=lambda i: f"bn{i}",
        shortcut=lambda: ("downsample.1", "downsample.2"),
        lateral=lambda i: (f"neck.lateral_convs.{i}.conv", f"neck.lateral_convs.{i}.bn"),
        output=lambda i: (f"neck.fpn_convs.{i}.conv", f"neck.fpn_convs.{i}.bn"),
        rpn=lambda part: f"rpn_head.rpn_{part}",
        box=lambda k, i: (
            f"roi_head.bbox_head{k}.shared_convs.{i}.conv",
            f"roi_head.bbox_head{k}.shared_convs.{i}.bn",
        ),
        fc=lambda k: f"roi_head.bbox_head{k}.shared_fcs.0",
        cls=lambda k: f"roi_head.bbox_head{k}.fc_cls",
        reg=lambda k: f"roi_head.bbox_head{k}.fc_reg",
        mask=lambda k, i: (
            f"roi_head.mask_head{k}.convs.{i}.conv",
            f"roi_head.mask_head{k}.convs.{i}.bn",
        ),
        deconv=lambda k: f"roi_head.mask_head{k}.upsample",
        predictor=lambda k: f"roi_head.mask_head{k}.conv_logits",
    ),
}


class Reference:
    """The network of a state dict, in evaluation mode; ``layout`` is a key of :data:`NAMES`."""

    def __init__(self, state: Mapping[str, Tensor], layout: str) -> None:
        self.state = state
        self.names = NAMES[layout]

    def has(self, module: str) -> bool:
        return f"{module}.weight" in self.state

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        pad = weight.shape[-1] // 2
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, pad, 1, groups)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{leaf}"].reshape(1, -1, 1, 1)
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def conv_norm(self, x: Tensor, names: tuple[str, str], stride: int = 1) -> Tensor:
        x = self.conv(x, names[0], stride)
        return self.norm(x, names[1]) if self.has(names[1]) else x

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def block(self, x: Tensor, name: str, stride: int) -> Tensor:
        """A block of ResNeSt, or of a ResNet with the stride in the first convolution."""
        norm = self.names["norm"]
        split = self.has(f"{name}.conv2.conv")
        first = (f"{name}.conv1", f"{name}.{norm(1)}")
        out = self.conv_norm(x, first, 1 if split else stride).relu()
        if split:
            out = self.norm(self.conv(out, f"{name}.conv2.conv"), f"{name}.conv2.bn0").relu()
            one, two = out.chunk(2, dim=1)
            gate = self.conv((one + two).mean((2, 3), keepdim=True), f"{name}.conv2.fc1")
            gate = self.norm(gate, f"{name}.conv2.bn1").relu()
            gate = self.conv(gate, f"{name}.conv2.fc2")
            gate = gate.reshape(len(x), 2, -1, 1, 1).softmax(dim=1)
            out = gate[:, 0] * one + gate[:, 1] * two
            if stride > 1:
                out = F.avg_pool2d(out, 3, stride, 1)
        else:
            out = self.conv_norm(out, (f"{name}.conv2", f"{name}.{norm(2)}")).relu()
        out = self.conv_norm(out, (f"{name}.conv3", f"{name}.{norm(3)}"))
        shortcut = [f"{name}.{part}" for part in self.names["shortcut"]()]
        if self.has(shortcut[0]):
            if split:
                x = F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)
            x = self.conv_norm(x, (shortcut[0], shortcut[1]), 1 if split else stride)
        return (out + x).relu()

    def backbone(self, images: Tensor) -> list[Tensor]:
        if self.has(self.names["stem"](0)[0]):
            x = images
            for i in range(3):
                x = self.conv_norm(x, self.names["stem"](i), 2 if i == 0 else 1).relu()
        else:
            x = self.conv_norm(images, self.names["plain_stem"](), 2).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for stage in range(4):
            index = 0
            while self.has(f"{(name := self.names['block'](stage, index))}.conv1"):
                x = self.block(x, name, 2 if stage > 0 and index == 0 else 1)
                index += 1
            features.append(x)
        return features

    def fpn(self, features: list[Tensor]) -> list[Tensor]:
        levels: list[Tensor] = []
        above = None
        for level in (3, 2, 1, 0):
            x = self.conv_norm(features[level], self.names["lateral"](level))
            if above is not None:
                x = x + above.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            above = x
            levels.insert(0, self.conv_norm(x, self.names["output"](level)))
        return [*levels, levels[3][:, :, ::2, ::2]]

    def rpn(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Objectness logits and box deltas of one level."""
        rpn = self.names["rpn"]
        x = self.conv(level, rpn("conv")).relu()
        return self.conv(x, rpn("cls")), self.conv(x, rpn("reg"))

    def box_head(self, rois: Tensor, stage: str = "") -> tuple[Tensor, Tensor]:
        """Class logits and box deltas of RoI features; ``stage`` such as ``.0`` in a cascade."""
        index, x = 0, rois
        while self.has((names := self.names["box"](stage, index))[0]):
            x = self.conv_norm(x, names).relu()
            index += 1
        x = self.linear(x.flatten(1), self.names["fc"](stage)).relu()
        return self.linear(x, self.names["cls"](stage)), self.linear(x, self.names["reg"](stage))

    def mask_head(self, rois: Tensor, stage: str = "") -> Tensor:
        """Mask logits of RoI features."""
        index, x = 0, rois
        while self.has((names := self.names["mask"](stage, index))[0]):
            x = self.conv_norm(x, names).relu()
            index += 1
        name = self.names["deconv"](stage)
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return self.conv(
            F.conv_transpose2d(x, weight, bias, 2).relu(), self.names["predictor"](stage)
        )


def roi_align(levels: list[Tensor], rois: Tensor, size: int) -> Tensor:
    """RoI features (R, C, size, size) of boxes (image, x1, y1, x2, y2) from strides 4 to 32.

    Bilinear samples are a matrix a direction: ``rows @ feature @ columns.T``.
    """
    result = []
    for image, x1, y1, x2, y2 in rois.tolist():
        side = math.sqrt((x2 - x1) * (y2 - y1))
        level = min(3, max(0, math.floor(math.log2(side / 56 + 1e-6))))
        feature, stride = levels[level][int(image)], 4 << level
        rows = _samples(y1 / stride - 0.5, (y2 - y1) / stride, size, feature.shape[1])
        columns = _samples(x1 / stride - 0.5, (x2 - x1) / stride, size, feature.shape[2])
        result.append(rows.to(feature) @ feature @ columns.to(feature).T)
    return torch.stack(result)


def _samples(start: float, length: float, bins: int, pixels: int) -> Tensor:
    """What each pixel counts in each bin of one direction."""
    result = torch.zeros(bins, pixels, dtype=torch.float64)
    samples = math.ceil(length / bins)
    for index in range(bins * samples):
        at = start + (index + 0.5) * length / bins / samples
        if -1 <= at <= pixels:
            at = min(max(at, 0), pixels - 1)
            low = min(int(at), pixels - 1)
            high = min(low + 1, pixels - 1)
            result[index // samples, low] += (1 - (at - low)) / samples
            result[index // samples, high] += (at - low) / samples
    return result
