# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The published segmentation models and losses, written a second time in plain torch.

Nothing here comes from the package or from MMSegmentation: layers are torch's own, in the order
and under the names of the published checkpoints (PyTorch-Encoding), written the long way round
(every residual of the encoding layer is there, dropout is where it is published). Slow and clear.
"""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = 255


def conv_norm_relu(inside: int, outside: int, size: int, rate: int = 1) -> list[nn.Module]:
    padding = rate * (size // 2)
    conv = nn.Conv2d(inside, outside, size, padding=padding, dilation=rate, bias=False)
    return [conv, nn.BatchNorm2d(outside), nn.ReLU()]


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


class SplitAttention(nn.Module):
    def __init__(self, width: int, radix: int, groups: int, rate: int) -> None:
        super().__init__()
        gate = max(width * radix // 4, 32)
        self.radix, self.groups = radix, groups
        self.conv = nn.Conv2d(
            width, width * radix, 3, padding=rate, dilation=rate, groups=groups * radix, bias=False
        )
        self.bn0 = nn.BatchNorm2d(width * radix)
        self.fc1 = nn.Conv2d(width, gate, 1, groups=groups)
        self.bn1 = nn.BatchNorm2d(gate)
        self.fc2 = nn.Conv2d(gate, width * radix, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv(x)))
        n, channels, height, width = x.shape
        splits = x.view(n, self.radix, channels // self.radix, height, width)
        pooled = splits.sum(1).mean((2, 3), keepdim=True)
        gate = self.fc2(F.relu(self.bn1(self.fc1(pooled))))
        gate = gate.view(n, self.groups, self.radix, -1)
        gate = torch.softmax(gate, 2) if self.radix > 1 else torch.sigmoid(gate)
        gate = gate.permute(0, 2, 1, 3).reshape(n, self.radix, -1, 1, 1)
        return (splits * gate).sum(1)


class Block(nn.Module):
    def __init__(
        self, inside: int, planes: int, stride: int, rate: int, first: bool, pool: bool, arch: dict
    ) -> None:
        super().__init__()
        width = int(planes * arch["base_width"] / 64) * arch["groups"]
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = SplitAttention(width, arch["radix"], arch["groups"], rate)
        self.conv3 = nn.Conv2d(width, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if pool else None
        self.pool_first = arch["avd_first"]
        if first:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(inside, 4 * planes, 1, bias=False),
                nn.BatchNorm2d(4 * planes),
            )
        else:
            self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        if self.pool is not None and self.pool_first:
            x = self.pool(x)
        x = self.conv2(x)
        if self.pool is not None and not self.pool_first:
            x = self.pool(x)
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class Backbone(nn.Module):
    """Output stride 8: (stride, dilation of the first block, of the others) a stage."""

    STAGES = ((1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4))

    def __init__(self, arch: dict) -> None:
        super().__init__()
        stem = arch["stem_width"]
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, stem, 3, 2, 1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            nn.Conv2d(stem, stem, 3, 1, 1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            nn.Conv2d(stem, 2 * stem, 3, 1, 1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(2 * stem)
        inside = 2 * stem
        for stage, (stride, first_rate, rate) in enumerate(self.STAGES):
            planes = 64 << stage
            layers = []
            for block in range(arch["blocks"][stage]):
                first = block == 0
                step, dilation = (stride, first_rate) if first else (1, rate)
                pooled = first and stage > 0
                layers.append(Block(inside, planes, step, dilation, first, pooled, arch))
                inside = 4 * planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        stages = []
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            stages.append(x)
        return stages


class FCNHead(nn.Module):
    def __init__(self, inside: int, classes: int) -> None:
        super().__init__()
        self.conv5 = nn.Sequential(
            *conv_norm_relu(inside, inside // 4, 3),
            nn.Dropout(0.1),
            nn.Conv2d(inside // 4, classes, 1),
        )

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, None]:
        return self.conv5(stages[-1]), None


class PyramidPooling(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        for index in range(1, 5):
            setattr(self, f"conv{index}", nn.Sequential(*conv_norm_relu(inside, inside // 4, 1)))

    def forward(self, x: Tensor) -> Tensor:
        pieces = [x]
        for index, bins in enumerate((1, 2, 3, 6), 1):
            pooled = F.adaptive_avg_pool2d(x, bins)
            pieces.append(resized(getattr(self, f"conv{index}")(pooled), x))
        return torch.cat(pieces, 1)


class PSPHead(nn.Module):
    def __init__(self, inside: int, classes: int) -> None:
        super().__init__()
        self.conv5 = nn.Sequential(
            PyramidPooling(inside),
            *conv_norm_relu(2 * inside, inside // 4, 3),
            nn.Dropout(0.1),
            nn.Conv2d(inside // 4, classes, 1),
        )

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, None]:
        return self.conv5(stages[-1]), None


class ImagePool(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(inside, outside, 1))

    def forward(self, x: Tensor) -> Tensor:
        return resized(self.gap(x), x)


class AtrousPyramid(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        width = inside // 8
        self.b0 = nn.Sequential(*conv_norm_relu(inside, width, 1))
        self.b1 = nn.Sequential(*conv_norm_relu(inside, width, 3, 12))
        self.b2 = nn.Sequential(*conv_norm_relu(inside, width, 3, 24))
        self.b3 = nn.Sequential(*conv_norm_relu(inside, width, 3, 36))
        self.b4 = ImagePool(inside, width)
        self.project = nn.Sequential(*conv_norm_relu(5 * width, width, 1), nn.Dropout2d(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(
            torch.cat([b(x) for b in (self.b0, self.b1, self.b2, self.b3, self.b4)], 1)
        )


class DeepLabHead(nn.Module):
    def __init__(self, inside: int, classes: int) -> None:
        super().__init__()
        width = inside // 8
        self.aspp = AtrousPyramid(inside)
        self.block = nn.Sequential(
            *conv_norm_relu(width, width, 3), nn.Dropout(0.1), nn.Conv2d(width, classes, 1)
        )

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, None]:
        return self.block(self.aspp(stages[-1])), None


class Encoding(nn.Module):
    def __init__(self, channels: int, codes: int) -> None:
        super().__init__()
        self.codewords = nn.Parameter(torch.empty(codes, channels))
        self.scale = nn.Parameter(torch.empty(codes))

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)[:, :, None]  # N, HW, 1, C
        residuals = pixels - self.codewords  # N, HW, K, C
        weights = torch.softmax(self.scale * residuals.square().sum(3), 2)
        return (weights[..., None] * residuals).sum(1)


class MeanOfCodes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class EncodingModule(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.encoding = nn.Sequential(
            *conv_norm_relu(channels, channels, 1),
            Encoding(channels, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            MeanOfCodes(),
        )
        self.fc = nn.Sequential(nn.Linear(channels, channels), nn.Sigmoid())
        self.selayer = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoding(x)
        gate = self.fc(code)[:, :, None, None]
        return F.relu(x + x * gate), self.selayer(code)


class EncHead(nn.Module):
    def __init__(self, inside: int, classes: int, lateral: bool = False) -> None:
        super().__init__()
        self.conv5 = nn.Sequential(*conv_norm_relu(inside, 512, 3))
        if lateral:
            self.connect = nn.ModuleList(
                nn.Sequential(*conv_norm_relu(channels, 512, 1)) for channels in (512, 1024)
            )
            self.fusion = nn.Sequential(*conv_norm_relu(3 * 512, 512, 3))
        self.lateral = lateral
        self.encmodule = EncodingModule(512, classes)
        self.conv6 = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(512, classes, 1))

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = self.conv5(stages[3])
        if self.lateral:
            x = torch.cat([x, self.connect[0](stages[1]), self.connect[1](stages[2])], 1)
            x = self.fusion(x)
        x, presence = self.encmodule(x)
        return self.conv6(x), presence


HEADS = {"fcn": FCNHead, "pspnet": PSPHead, "deeplabv3": DeepLabHead, "encnet": EncHead}


class PublishedModel(nn.Module):
    """A published segmentation model in float64, its numbers drawn from its own names.

    Args:
        head: A key of :data:`HEADS`.
        arch: ``blocks``, ``radix``, ``groups``, ``base_width``, ``stem_width``, ``avd_first``.
        classes: Number of classes.
        options: Further arguments of the head.
    """

    def __init__(self, head: str, arch: dict, classes: int, **options: bool) -> None:
        super().__init__()
        with torch.device("meta"):
            self.pretrained = Backbone(arch)
            self.head = HEADS[head](2048, classes, **options)
            self.auxlayer = FCNHead(1024, classes)
        self.double().to_empty(device="cpu")
        for name, tensor in self.state_dict().items():
            draw(name, tensor)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Scores (N, classes, H, W) of the head, logits of presence or None, auxiliary scores."""
        stages = self.pretrained(images)
        scores, presence = self.head(stages)
        auxiliary, _ = self.auxlayer(stages[:3])
        return resized(scores, images), presence, resized(auxiliary, images)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Published losses, weighted; labels (N, H, W) with 255 where there is none."""
        scores, presence, auxiliary = self(images)
        losses = {"main": pixel_loss(scores, labels), "aux": 0.2 * pixel_loss(auxiliary, labels)}
        if presence is not None:
            losses["se"] = 0.2 * presence_loss(presence, labels)
        return losses


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over labelled pixels of minus the log of the softmax at the label."""
    classes = scores.shape[1]
    logs = scores - scores.exp().sum(1, keepdim=True).log()
    logs = logs.permute(0, 2, 3, 1).reshape(-1, classes)
    labels = labels.reshape(-1)
    labelled = torch.nonzero(labels != IGNORED)[:, 0]
    return -logs[labelled, labels[labelled]].mean()


def presence_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross entropy between sigmoid(logits) and which classes an image holds."""
    there = torch.zeros_like(logits)
    for row, image in zip(there, labels, strict=True):
        for label in image.unique().tolist():
            if label != IGNORED:
                row[label] = 1
    chance = torch.sigmoid(logits)
    return -(there * chance.log() + (1 - there) * (1 - chance).log()).mean()


def draw(name: str, tensor: Tensor) -> None:
    """Fills a parameter or buffer with numbers that only its name decides."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        tensor.zero_()
    elif leaf == "running_var" or (leaf == "weight" and tensor.dim() == 1):
        small = name.endswith("bn3.weight")  # keeps a stack of blocks from blowing up
        tensor.uniform_(0.1 if small else 0.5, 0.3 if small else 1.5, generator=generator)
    elif leaf in ("bias", "running_mean"):
        tensor.normal_(0.0, 0.1, generator=generator)
    elif leaf == "scale":
        tensor.uniform_(-1.0, 0.0, generator=generator)
    elif leaf == "codewords":
        tensor.uniform_(-0.2, 0.2, generator=generator)
    else:
        fan_in = tensor[0].numel()
        tensor.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
