# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Published detectors' state dicts: names and shapes, written down by their definitions' rules.

Three names for each module: that of detectron2-ResNeSt (the authors), of MMDetection 2 and 3, and
ours, which is MMDetection's with the published names in the backbone. No model is built.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NORM = ("weight", "bias", "running_mean", "running_var")
Row = tuple[str, str, str, tuple[int, ...], bool]  # three modules, shape of weight, with bias


@dataclass(frozen=True)
class Detector:
    """What the configs of the two code bases vary."""

    blocks: tuple[int, int, int, int]
    stem: int = 32
    deep: bool = True  # a ResNeSt; else a plain ResNet
    stages: int = 0  # of the cascade; 0 is Faster or Mask R-CNN
    mask_convs: int = 0  # 0 is without masks
    fpn_norm: bool = True
    hidden: int = 1024  # of the box head's linear layer

    def rows(self) -> Iterator[Row]:
        """Every module; the shape of a norm has one number."""
        yield from self._backbone()
        yield from self._heads()

    def _backbone(self) -> Iterator[Row]:
        up, channels = "backbone.bottom_up.", 2 * self.stem if self.deep else 64
        if self.deep:
            sizes = [(3, self.stem), (self.stem, self.stem), (self.stem, 2 * self.stem)]
            ours = [("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")]
            for i, ((cin, cout), names) in enumerate(zip(sizes, ours, strict=True)):
                conv = f"{up}stem.conv1_{i + 1}"
                shape = (cout, cin, 3, 3)
                yield conv, f"backbone.stem.{3 * i}", f"backbone.{names[0]}", shape, False
                norm = f"backbone.stem.{3 * i + 1}"
                yield f"{conv}.norm", norm, f"backbone.{names[1]}", (cout,), False
        else:
            conv, same = f"{up}stem.conv1", "backbone.conv1"
            yield conv, same, same, (64, 3, 7, 7), False
            yield f"{conv}.norm", "backbone.bn1", "backbone.bn1", (64,), False
        for stage, count in enumerate(self.blocks):
            width, out = 64 << stage, 256 << stage
            for index in range(count):
                theirs, same = f"{up}res{stage + 2}.{index}", f"backbone.layer{stage + 1}.{index}"
                cin = channels if index == 0 else out
                for module, other, shape, bias in self._block(cin, width, out, index == 0):
                    yield f"{theirs}.{module}", f"{same}.{other}", f"{same}.{other}", shape, bias
            channels = out

    def _block(self, cin: int, width: int, out: int, first: bool) -> Iterator[tuple]:
        yield "conv1", "conv1", (width, cin, 1, 1), False
        yield "conv1.norm", "bn1", (width,), False
        if self.deep:
            inner = max(width // 2, 32)
            yield "conv2.conv", "conv2.conv", (2 * width, width // 2, 3, 3), False
            yield "conv2.bn0", "conv2.bn0", (2 * width,), False
            yield "conv2.fc1", "conv2.fc1", (inner, width, 1, 1), True
            yield "conv2.bn1", "conv2.bn1", (inner,), False
            yield "conv2.fc2", "conv2.fc2", (2 * width, inner, 1, 1), True
        else:
            yield "conv2", "conv2", (width, width, 3, 3), False
            yield "conv2.norm", "bn2", (width,), False
        yield "conv3", "conv3", (out, width, 1, 1), False
        yield "conv3.norm", "bn3", (out,), False
        if first:
            start = 1 if self.deep else 0
            yield "shortcut", f"downsample.{start}", (out, cin, 1, 1), False
            yield "shortcut.norm", f"downsample.{start + 1}", (out,), False

    def _heads(self) -> Iterator[Row]:
        for level in range(4):
            for theirs, ours, shape in (
                ("lateral", "lateral_convs", (256, 256 << level, 1, 1)),
                ("output", "fpn_convs", (256, 256, 3, 3)),
            ):
                module, name = f"backbone.fpn_{theirs}{level + 2}", f"neck.{ours}.{level}"
                yield from _conv_module(module, name, shape, self.fpn_norm)
        for theirs, ours, shape in (
            ("conv", "conv", (256, 256, 3, 3)),
            ("objectness_logits", "cls", (3, 256, 1, 1)),
            ("anchor_deltas", "reg", (12, 256, 1, 1)),
        ):
            ours = f"rpn_head.rpn_{ours}"
            yield f"proposal_generator.rpn_head.{theirs}", ours, ours, shape, True
        for stage in [f".{index}" for index in range(self.stages)] or [""]:
            head, box = f"roi_head.bbox_head{stage}", f"roi_heads.box_head{stage}"
            for index in range(4):
                name = f"{head}.shared_convs.{index}"
                yield from _conv_module(f"{box}.conv{index + 1}", name, (256, 256, 3, 3), True)
            fc, predictor = f"{head}.shared_fcs.0", f"roi_heads.box_predictor{stage}"
            yield f"{box}.fc1", fc, fc, (self.hidden, 256 * 49), True
            yield (
                f"{predictor}.cls_score",
                f"{head}.fc_cls",
                f"{head}.fc_cls",
                (81, self.hidden),
                True,
            )
            outputs = 4 if self.stages else 320
            yield (
                f"{predictor}.bbox_pred",
                f"{head}.fc_reg",
                f"{head}.fc_reg",
                (outputs, self.hidden),
                True,
            )
        # detectron2's cascade has one mask head, MMDetection's one a stage
        for stage in (
            [f".{index}" for index in range(self.stages)] or [""] if self.mask_convs else ()
        ):
            head, mask = f"roi_head.mask_head{stage}", "roi_heads.mask_head"
            for index in range(self.mask_convs):
                name = f"{head}.convs.{index}"
                yield from _conv_module(f"{mask}.mask_fcn{index + 1}", name, (256, 256, 3, 3), True)
            upsample, logits = f"{head}.upsample", f"{head}.conv_logits"
            yield f"{mask}.deconv", upsample, upsample, (256, 256, 2, 2), True
            yield f"{mask}.predictor", logits, logits, (80, 256, 1, 1), True


def _conv_module(theirs: str, ours: str, shape: tuple[int, ...], norm: bool) -> Iterator[Row]:
    yield theirs, f"{ours}.conv", f"{ours}.conv", shape, not norm
    if norm:
        yield f"{theirs}.norm", f"{ours}.bn", f"{ours}.bn", shape[:1], False


def _shapes(detector: Detector, column: int, counted: bool = True) -> dict[str, tuple[int, ...]]:
    """``{key: shape}`` in a column's names; ``counted``: every norm has a counter."""
    result: dict[str, tuple[int, ...]] = {}
    for row in detector.rows():
        name, shape, bias = row[column], row[3], row[4]
        frozen = row[0].startswith(("backbone.bottom_up.stem.", "backbone.bottom_up.res2."))
        if len(shape) == 1:
            result.update({f"{name}.{leaf}": shape for leaf in NORM})
            if counted or not frozen:
                result[f"{name}.num_batches_tracked"] = ()
        else:
            result[f"{name}.weight"] = shape
            if bias:
                result[f"{name}.bias"] = (shape[1] if "upsample" in row[2] else shape[0],)
    return result


def detectron2_shapes(detector: Detector) -> dict[str, tuple[int, ...]]:
    """The authors' file: frozen norms (stem, res2) have no counter, constants are in it."""
    constants = {"pixel_mean": (3, 1, 1), "pixel_std": (3, 1, 1)}
    anchors = {f"proposal_generator.anchor_generator.cell_anchors.{i}": (3, 4) for i in range(5)}
    return {**constants, **anchors, **_shapes(detector, 0, counted=False)}


def mmdet_shapes(detector: Detector) -> dict[str, tuple[int, ...]]:
    """A file of MMDetection's zoo."""
    return _shapes(detector, 1)


def our_shapes(detector: Detector) -> dict[str, tuple[int, ...]]:
    """What a file becomes."""
    return _shapes(detector, 2)


def marked(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors that take no memory: a number that only the tensor of this name has."""
    result = {}
    for name, shape in shapes.items():
        kind = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        result[name] = torch.tensor(zlib.crc32(name.encode()) >> 8, dtype=kind).expand(shape)
    return result


def seeded(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that keep the size of what goes through a deep network, the same in every run."""
    result = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            result[name] = torch.tensor(1000)
        elif name.endswith("running_var"):
            result[name] = 0.5 + torch.rand(shape, generator=generator)
        elif len(shape) < 2 and name.endswith(".weight"):
            last = name.endswith((".conv3.norm.weight", ".bn3.weight"))
            result[name] = (0.2 if last else 1.0) * (0.5 + torch.rand(shape, generator=generator))
        elif len(shape) < 2:
            result[name] = 0.1 * torch.randn(shape, generator=generator)
        else:
            deviation = math.sqrt(2 / math.prod(shape[1:]))
            result[name] = deviation * torch.randn(shape, generator=generator)
    return result


#: A small one that nobody has published, for files.
SMALL = Detector((1, 1, 1, 1), mask_convs=1, hidden=8)
RESNEST50 = dict(blocks=(3, 4, 6, 3))
RESNEST101 = dict(blocks=(3, 4, 23, 3), stem=64)
RESNEST200 = dict(blocks=(3, 24, 36, 3), stem=64)
RESNET50 = dict(blocks=(3, 4, 6, 3), deep=False)
RESNET101 = dict(blocks=(3, 4, 23, 3), deep=False)

#: The authors' table, by the names of the configs.
AUTHORS = {
    f"{method}_{name}": Detector(**backbone, **kind)
    for method, kind, names in (
        ("faster_rcnn", {}, 4),
        ("cascade_rcnn", dict(stages=3), 5),
        ("mask_rcnn", dict(mask_convs=4), 4),
        ("cascade_mask_rcnn", dict(stages=3, mask_convs=4), 4),
    )
    for name, backbone in list(
        dict(
            resnest50=RESNEST50, resnest101=RESNEST101, resnet50=RESNET50, resnet101=RESNET101,
            resnest200=RESNEST200,
        ).items()
    )[:names]
}  # fmt: skip
AUTHORS["cascade_mask_rcnn_resnest200"] = Detector(**RESNEST200, stages=3, mask_convs=8)

#: MMDetection's zoo: no norm in the FPN.
MMDET = {
    f"{method}_{name}": Detector(**backbone, **kind, fpn_norm=False)
    for method, kind in (
        ("faster_rcnn", {}),
        ("cascade_rcnn", dict(stages=3)),
        ("mask_rcnn", dict(mask_convs=4)),
        ("cascade_mask_rcnn", dict(stages=3, mask_convs=4)),
    )
    for name, backbone in (("resnest50", RESNEST50), ("resnest101", RESNEST101))
}
