# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Heads of the published segmentation models (PyTorch-Encoding).

MMSegmentation's FCN, PSP and Enc heads have the published layers; what differs is the dropout
before the classifier, which the published heads apply to single values and MMSegmentation to whole
channels. The published DeepLabV3 head has a 1x1 projection that MMSegmentation's lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import EncHead as StockEncHead
from mmseg.models.decode_heads import FCNHead, PSPHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import Encoding
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..registry import MODELS


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which what is computed from a tensor keeps its precision."""
    if x.device.type == "meta":  # which has no autocast
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class _ElementDropout(BaseDecodeHead):
    """A decode head whose dropout zeroes single values instead of channels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.dropout_ratio > 0:
            self.dropout = nn.Dropout(self.dropout_ratio)


@MODELS.register_module()
class PublishedFCNHead(_ElementDropout, FCNHead):
    """FCN head: 3x3 convolution, norm, ReLU, dropout, classifier.

    Takes MMSegmentation's ``FCNHead`` arguments; the published head has ``num_convs=1`` and no
    ``concat_input``, which are the defaults here.
    """

    def __init__(self, num_convs: int = 1, concat_input: bool = False, **kwargs: Any) -> None:
        super().__init__(num_convs=num_convs, concat_input=concat_input, **kwargs)


@MODELS.register_module()
class PublishedPSPHead(_ElementDropout, PSPHead):
    """Pyramid pooling head (PSPNet, arXiv 1612.01105); takes the arguments of ``PSPHead``."""


class ResidualEncoding(Encoding):
    """The encoding layer of EncNet (arXiv 1803.08904, section 3) without its residual tensor.

    The residuals between N*H*W pixels and K codewords have N*H*W*K*C values; distances and sums
    are computed from products instead, which need N*H*W*K. Computed in float32 at least, whatever
    the autocast type, since distances are differences of large numbers.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Encodes ``x`` (N, C, H, W) into (N, K, C)."""
        with without_autocast(x):
            # the codewords are float32, or float64 in a model that was made so
            codewords = self.codewords.to(torch.promote_types(self.codewords.dtype, torch.float32))
            features = x.to(codewords).flatten(2).transpose(1, 2)  # N, H*W, C
            products = features @ codewords.t()
            squares = features.square().sum(2, keepdim=True)
            distances = squares - 2.0 * products + codewords.square().sum(1)
            weights = F.softmax(self.scale.to(codewords) * distances, dim=2)  # N, H*W, K
            sums = weights.transpose(1, 2) @ features
            return sums - weights.sum(1).unsqueeze(2) * codewords


@MODELS.register_module()
class EncHead(StockEncHead):
    """MMSegmentation's head, whose class branch learns which labelled classes an image has.

    The stack's takes an ignored label that is a class for one, has no class branch without a loss
    for a single class, and cannot be trained with ``use_se_loss=False``.
    """

    def loss_by_feat(
        self, seg_logit: Any, batch_data_samples: list[SegDataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Losses of scores (N, C, h, w), with those of the class branch (N, num_classes)."""
        scores, branch = seg_logit if self.use_se_loss else (seg_logit, None)
        # The stack's own takes both outputs apart.
        losses = super(StockEncHead, self).loss_by_feat(scores, batch_data_samples)
        if branch is not None:
            labels = torch.stack([s.gt_sem_seg.data for s in batch_data_samples]).flatten(1).long()
            classes = max(self.num_classes, 2)
            if self.ignore_index is not None:  # a column of its own, which is cut off
                labels = labels.masked_fill(labels == self.ignore_index, classes)
            present = labels.new_zeros(len(labels), classes + 1).scatter_(1, labels, 1)
            # One class is class 1, as for one output of a head.
            present = present[:, classes - self.num_classes : classes]
            losses["loss_se"] = self.loss_se_decode(branch, present)
        return losses


@MODELS.register_module()
class PublishedEncHead(_ElementDropout, EncHead):
    """Context encoding head (EncNet, arXiv 1803.08904) with its semantic encoding branch.

    Takes MMSegmentation's ``EncHead`` arguments; the encoding layer is :class:`ResidualEncoding`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        stock = self.enc_module.encoding[0]
        encoding = ResidualEncoding(stock.channels, stock.num_codes)
        encoding.load_state_dict(stock.state_dict())
        self.enc_module.encoding[0] = encoding


@MODELS.register_module()
class DeepLabV3Head(_ElementDropout):
    """The published DeepLabV3 head (arXiv 1706.05587 as in PyTorch-Encoding).

    Atrous pyramid of a 1x1 convolution, 3x3 convolutions at ``dilations`` and image pooling, each
    to ``channels``; concatenation; 1x1 projection, norm, ReLU, channel dropout; 3x3 convolution,
    norm, ReLU, dropout, classifier.

    Args:
        in_channels: Channels C of the backbone's last stage.
        channels: Width of every layer; C / 8 as published.
        dilations: Rates of the 3x3 convolutions.
        projection_dropout: Probability of the channel dropout.
        kwargs: Arguments of MMSegmentation's ``BaseDecodeHead``.
    """

    def __init__(
        self,
        in_channels: int = 2048,
        channels: int = 256,
        *,
        dilations: Sequence[int] = (12, 24, 36),
        projection_dropout: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, channels, **kwargs)
        self.dilations = tuple(dilations)
        layer = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        branches = [ConvModule(in_channels, channels, 1, **layer)]
        branches += [
            ConvModule(in_channels, channels, 3, padding=rate, dilation=rate, **layer)
            for rate in self.dilations
        ]
        self.aspp = nn.ModuleList(branches)
        self.image_pool = ConvModule(in_channels, channels, 1, **layer)
        self.project = ConvModule((len(branches) + 1) * channels, channels, 1, **layer)
        self.project_dropout = nn.Dropout2d(projection_dropout)
        self.bottleneck = ConvModule(channels, channels, 3, padding=1, **layer)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps the backbone's feature maps to scores (N, num_classes, h, w)."""
        x = self._transform_inputs(inputs)
        pooled = self.image_pool(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[2:])
        x = torch.cat([*(branch(x) for branch in self.aspp), pooled], dim=1)
        x = self.project_dropout(self.project(x))
        return self.cls_seg(self.bottleneck(x))
