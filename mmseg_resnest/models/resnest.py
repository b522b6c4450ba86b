# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""ResNeSt (Zhang et al., "ResNeSt: Split-Attention Networks", arXiv 2004.08955)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._stack import BatchNorm
from ..errors import UserError
from ..registry import MODELS
from ..weights import load_backbone
from .norm import build_norm, frozen_batch_statistics
from .split_attention import DropBlock2d, SplitAttentionConv2d


def _arch(
    blocks: tuple[int, int, int, int],
    radix: int = 2,
    groups: int = 1,
    base_width: int = 64,
    stem_width: int = 32,
    avd_first: bool = False,
) -> dict[str, Any]:
    return dict(
        blocks=blocks, radix=radix, groups=groups, base_width=base_width, stem_width=stem_width,
        avd_first=avd_first,
    )  # fmt: skip


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnest14": _arch((1, 1, 1, 1)),
    "resnest26": _arch((2, 2, 2, 2)),
    "resnest50": _arch((3, 4, 6, 3)),
    "resnest101": _arch((3, 4, 23, 3), stem_width=64),
    "resnest200": _arch((3, 24, 36, 3), stem_width=64),
    "resnest269": _arch((3, 30, 48, 8), stem_width=64),
    "resnest50_fast_1s1x64d": _arch((3, 4, 6, 3), radix=1, avd_first=True),
    "resnest50_fast_2s1x64d": _arch((3, 4, 6, 3), radix=2, avd_first=True),
    "resnest50_fast_4s1x64d": _arch((3, 4, 6, 3), radix=4, avd_first=True),
    "resnest50_fast_1s2x40d": _arch((3, 4, 6, 3), 1, groups=2, base_width=40, avd_first=True),
    "resnest50_fast_2s2x40d": _arch((3, 4, 6, 3), 2, groups=2, base_width=40, avd_first=True),
    "resnest50_fast_4s2x40d": _arch((3, 4, 6, 3), 4, groups=2, base_width=40, avd_first=True),
    "resnest50_fast_1s4x24d": _arch((3, 4, 6, 3), 1, groups=4, base_width=24, avd_first=True),
}
"""The published architectures: the paper's, those of its ablation (fast), and GluonCV's 14 and 26.

``blocks`` a stage, ``radix`` (splits; 1 gates a single split with a sigmoid), ``groups``
(cardinality), ``base_width`` (channels of a group at 64 planes), ``stem_width`` (channels of the
stem's first convolutions) and ``avd_first`` (the block's average pool before its convolution).
"""

# Stride of each stage and dilation of its blocks; the first block of a dilated stage has half.
_STAGES = {
    32: ((1, 2, 2, 2), (1, 1, 1, 1)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
}


class Bottleneck(nn.Module):
    """A ResNeSt block: 1x1 convolution, split attention, average pool, 1x1 convolution.

    The output has ``4 * planes`` channels. ``stride`` is taken by the 3x3 average pool if there is
    one (``pool``), ``dilation`` is that of the split attention; a convolution in the ``shortcut``
    is pooled by ``stride`` before it. ``dropblock`` is probability and side in feature map pixels.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int,
        dilation: int,
        shortcut: bool,
        pool: bool,
        arch: Mapping[str, Any],
        norm_cfg: Mapping[str, Any],
        dropblock: tuple[float, int],
    ) -> None:
        super().__init__()
        groups = arch["groups"]
        width = int(planes * arch["base_width"] / 64) * groups
        out_channels = planes * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = build_norm(norm_cfg, width)
        self.dropblock1 = DropBlock2d(*dropblock) if dropblock[0] > 0 else nn.Identity()
        self.avd_first = arch["avd_first"]
        self.avd = nn.AvgPool2d(3, stride, padding=1) if pool else nn.Identity()
        self.conv2 = SplitAttentionConv2d(
            width,
            width,
            stride=1 if pool else stride,
            padding=dilation,
            dilation=dilation,
            groups=groups,
            radix=arch["radix"],
            norm_cfg=norm_cfg,
            dropblock_prob=dropblock[0],
            dropblock_size=dropblock[1],
        )
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = build_norm(norm_cfg, out_channels)
        self.dropblock3 = DropBlock2d(*dropblock) if dropblock[0] > 0 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if shortcut:
            # index 0 has no parameters, but the published names count it
            pooling = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            self.downsample = nn.Sequential(
                pooling if stride > 1 else nn.Identity(),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                build_norm(norm_cfg, out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``x`` (N, in_channels, H, W) to (N, 4 * planes, ceil(H/stride), ceil(W/stride))."""
        out = self.relu(self.dropblock1(self.bn1(self.conv1(x))))
        out = self.conv2(self.avd(out)) if self.avd_first else self.avd(self.conv2(out))
        out = self.dropblock3(self.bn3(self.conv3(out)))
        return self.relu(out + self.downsample(x))


@MODELS.register_module()
class ResNeSt(BaseModule):
    """ResNeSt backbone or classifier, equal to the published network at every output stride.

    Parameter names are those of the published checkpoints. Without ``num_classes`` there is no
    classifier (``fc``), and the network returns feature maps; with it, class scores.

    Args:
        arch: A name of :data:`ARCHITECTURES`, or a mapping of its columns (``blocks`` is required,
            the others default to ResNeSt-50's).
        output_stride: 8, 16 or 32: input pixels per pixel of the last feature map. Stages that
            lose their stride are dilated instead, as published for segmentation. None is 8, and
            with a classifier 32, as published for ImageNet.
        out_indices: Stages to return, from 0 (stride 4, 256 channels) to 3 (2048 channels).
        in_channels: Channels of the input images; pretrained weights are adapted to them.
        frozen_stages: Parameters and statistics of the stem (0) and of the first so many stages
            are fixed; -1 fixes nothing.
        norm_cfg: Normalisation: ``dict(type='BN' | 'SyncBN' | 'GN', ...)``. With group norm the
            gate of split attention, which sees one pixel, normalises each cardinal group.
        norm_eval: Whether batch norms keep their running statistics in training.
        with_cp: Activation checkpointing: blocks are computed again in the backward pass instead
            of being stored. Results and running statistics stay the same.
        avd_in_dilated: Whether a first block with stride 1 in a dilated stage keeps its 3x3
            average pool, as in the published network. False is MMSegmentation's variant, which
            its own checkpoints need.
        dropblock_prob: DropBlock probability in the last two stages, as in the paper.
        dropblock_size: Side of a dropped block in feature map pixels.
        zero_init_residual: Whether the last norm of each block begins with weight 0 (``gamma``), so
            that the block is its shortcut at first, as in the published ImageNet training.
        num_classes: Add the published classifier (mean over the last feature map, ``dropout``,
            linear layer ``fc``) for so many classes, 1000 for ImageNet's checkpoints. The last
            stage has to be among ``out_indices`` then.
        dropout: Probability with which the classifier drops a feature in training; 0.2 is
            published for ResNeSt-200 and -269.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads a file in any layout that
            :func:`mmseg_resnest.weights.convert_state_dict` knows (``prefix`` picks a part of it);
            None draws the published initialisation (normal with variance 2 / fan-out).

    Raises:
        UserError: For an argument out of its range, naming it.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "resnest101",
        output_stride: int | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        in_channels: int = 3,
        norm_cfg: Mapping[str, Any] | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        avd_in_dilated: bool = True,
        dropblock_prob: float = 0.0,
        dropblock_size: int = 3,
        zero_init_residual: bool = False,
        num_classes: int | None = None,
        dropout: float = 0.0,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        columns = _resolve_arch(arch)
        out_indices = tuple(out_indices)
        if output_stride is None:
            output_stride = 8 if num_classes is None else 32
        stages = bool(out_indices) and all(i in (0, 1, 2, 3) for i in out_indices)
        _check("output_stride", output_stride, "8, 16 or 32", output_stride in _STAGES)
        _check("out_indices", out_indices, "stages from 0 to 3", stages)
        _check("frozen_stages", frozen_stages, "from -1 to 4", frozen_stages in range(-1, 5))
        if num_classes is not None:
            several = isinstance(num_classes, int) and num_classes >= 1
            _check("num_classes", num_classes, "a positive number, or None", several)
            _check("out_indices", out_indices, "with 3 for a classifier", 3 in out_indices)
        _check("dropout", dropout, "at least 0 and below 1", 0 <= dropout < 1)
        norm_cfg = dict(type="BN") if norm_cfg is None else dict(norm_cfg)
        self.arch = columns
        self.output_stride = output_stride
        self.out_indices = out_indices
        self.num_classes = num_classes
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        stem = columns["stem_width"]
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, stem, 3, 2, 1, bias=False),
            build_norm(norm_cfg, stem),
            nn.ReLU(inplace=True),
            nn.Conv2d(stem, stem, 3, 1, 1, bias=False),
            build_norm(norm_cfg, stem),
            nn.ReLU(inplace=True),
            nn.Conv2d(stem, 2 * stem, 3, 1, 1, bias=False),
        )
        self.bn1 = build_norm(norm_cfg, 2 * stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)

        channels = 2 * stem
        strides, dilations = _STAGES[output_stride]
        self.stage_channels: tuple[int, ...] = ()
        # later stages that nobody reads are not built
        for stage in range(max(out_indices) + 1):
            planes, stride, dilation = 64 * 2**stage, strides[stage], dilations[stage]
            blocks = []
            for index in range(columns["blocks"][stage]):
                first = index == 0
                blocks.append(
                    Bottleneck(
                        channels,
                        planes,
                        stride=stride if first else 1,
                        dilation=max(dilation // 2, 1) if first else dilation,
                        shortcut=first,
                        pool=first and stage > 0 and (stride > 1 or avd_in_dilated),
                        arch=columns,
                        norm_cfg=norm_cfg,
                        dropblock=(dropblock_prob if stage >= 2 else 0.0, dropblock_size),
                    )
                )
                channels = planes * Bottleneck.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.stage_channels += (channels,)
        self._register_load_state_dict_pre_hook(self._ignore_unbuilt_stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # variance 2 / (k * k * out_channels), as the authors draw it
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck) and zero_init_residual:
                nn.init.constant_(module.get_parameter("bn3.weight"), 0.0)
        if num_classes is not None:
            self.dropout = nn.Dropout(dropout)
            self.fc = nn.Linear(channels, num_classes)
        self._freeze()

    def _ignore_unbuilt_stages(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        for stage in range(len(self.stage_channels) + 1, 5):
            for key in [k for k in state_dict if k.startswith(f"{prefix}layer{stage}.")]:
                del state_dict[key]

    def init_weights(self) -> None:
        """Loads ``init_cfg`` of type ``Pretrained`` in any known layout; all of it must fit."""
        configs = self.init_cfg if isinstance(self.init_cfg, (list, tuple)) else [self.init_cfg]
        pretrained = [c for c in configs if c and c.get("type") == "Pretrained"]
        if not pretrained:
            super().init_weights()
            return
        if getattr(self, "is_init", False):
            return
        source = pretrained[-1]["checkpoint"]
        said = load_backbone(self, source, prefix=pretrained[-1].get("prefix"))
        self.is_init = True
        print_log(f"ResNeSt: loaded {said} from {source}", logger="current")

    def _freeze(self) -> None:
        names = ["conv1", "bn1", *(f"layer{i}" for i in range(1, self.frozen_stages + 1))]
        for name in names if self.frozen_stages >= 0 else ():
            module = getattr(self, name, None)
            if module is not None:
                module.eval()
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> ResNeSt:
        """Sets the mode, keeps frozen parts in evaluation mode, and returns self."""
        super().train(mode)
        if mode:
            self._freeze()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, BatchNorm):
                        module.eval()
        return self

    def _run_stage(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        if not (self.with_cp and self.training and torch.is_grad_enabled()):
            return stage(x)
        for block in stage:
            # The second run of a block must not count twice in its running statistics.
            contexts = partial(_checkpoint_contexts, block)
            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return x

    def forward(self, images: Tensor) -> tuple[Tensor, ...] | Tensor:
        """What :meth:`features` returns, or with ``num_classes`` class scores.

        Args:
            images: (N, in_channels, H, W), normalised.

        Returns:
            Without a classifier a tuple of feature maps; with one a tensor (N, num_classes) of
            logits, which a softmax turns into probabilities.
        """
        features = self.features(images)
        if self.num_classes is None:
            return features
        pooled = nn.functional.adaptive_avg_pool2d(features[-1], 1).flatten(1)
        return self.fc(self.dropout(pooled))

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (N, C, h, w) of normalised images (N, in_channels, H, W).

        They are those of ``out_indices``; C = 256, 512, 1024, 2048 for the stages 0 to 3.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        outputs = []
        for stage in range(len(self.stage_channels)):
            x = self._run_stage(getattr(self, f"layer{stage + 1}"), x)
            if stage in self.out_indices:
                outputs.append(x)
        return tuple(outputs)


def _checkpoint_contexts(block: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), frozen_batch_statistics(block)


def _resolve_arch(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """The columns of an architecture given by name or as a mapping, checked."""
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            near = difflib.get_close_matches(arch, ARCHITECTURES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            _check("arch", arch, f"one of {', '.join(ARCHITECTURES)}{hint}", False)
        return dict(ARCHITECTURES[arch])
    _check("arch", arch, "a name or a mapping", isinstance(arch, Mapping))
    for key in arch:
        known = ", ".join(ARCHITECTURES["resnest50"])
        _check(f"arch.{key}", key, f"one of the keys {known}", key in ARCHITECTURES["resnest50"])
    _check("arch.blocks", None, "the number of blocks of each stage", "blocks" in arch)
    columns = {**ARCHITECTURES["resnest50"], **arch, "blocks": tuple(arch["blocks"])}
    blocks = columns["blocks"]
    positive = len(blocks) == 4 and all(isinstance(n, int) and n >= 1 for n in blocks)
    _check("arch.blocks", blocks, "four positive numbers", positive)
    for key in ("radix", "groups", "base_width", "stem_width"):
        value = columns[key]
        _check(f"arch.{key}", value, "a positive number", isinstance(value, int) and value >= 1)
    return columns


def _check(name: str, value: object, wanted: str, good: bool) -> None:
    if not good:
        raise UserError("argument", f"ResNeSt argument {name}", f"must be {wanted}, not {value!r}")
