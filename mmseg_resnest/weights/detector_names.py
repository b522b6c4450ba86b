# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The names of two-stage detectors: mmdetection's, which are ours, and detectron2's.

As in :mod:`.layouts` everything is about modules, and there is no torch in this file. Sources: the
model definitions of detectron2 and of its fork ``zhanghang1989/detectron2-ResNeSt`` (whose stem has
three convolutions, and whose blocks hold the published split attention under ``conv2``), and those
of mmdetection 3. Both order everything alike: foreground classes before the background, box deltas
(dx, dy, dw, dh) class by class, anchors by ratio, RoI features as (C, H, W).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from .layouts import PREFIXES, invert

#: What stands before the backbone's names in a detector of detectron2.
BOTTOM_UP = PREFIXES["detectron2"][0]

#: Tensors of a detectron2 checkpoint that its config says as well: pixel statistics and anchors.
CONSTANTS = re.compile(
    r"pixel_mean|pixel_std|proposal_generator\.anchor_generator\.cell_anchors\.\d+"
)

#: detectron2's stem to ours: the fork's three convolutions, and the one of a plain ResNet.
_STEM = {
    "stem.conv1_1": "conv1.0",
    "stem.conv1_1.norm": "conv1.1",
    "stem.conv1_2": "conv1.3",
    "stem.conv1_2.norm": "conv1.4",
    "stem.conv1_3": "conv1.6",
    "stem.conv1_3.norm": "bn1",
}
_PLAIN_STEM = {"stem.conv1": "conv1", "stem.conv1.norm": "bn1"}
#: The modules of a block that are called otherwise. A plain ResNet's shortcut has no pool.
_BLOCK = {
    "conv1.norm": "bn1",
    "conv2.norm": "bn2",
    "conv3.norm": "bn3",
    "shortcut": "downsample.1",
    "shortcut.norm": "downsample.2",
}
_PLAIN_BLOCK = {**_BLOCK, "shortcut": "downsample.0", "shortcut.norm": "downsample.1"}
_STAGE = re.compile(r"(res|layer)([1-9])\.(\d+)\.(.+)")

# detectron2's module, ours, and what its {n} is more than ours; {k} is a stage of a cascade (".0"),
# or nothing. A cascade of detectron2 has one mask head: see `mask_heads`.
_PARTS = (
    ("backbone.fpn_lateral{n}", "neck.lateral_convs.{n}.conv", 2),
    ("backbone.fpn_lateral{n}.norm", "neck.lateral_convs.{n}.bn", 2),
    ("backbone.fpn_output{n}", "neck.fpn_convs.{n}.conv", 2),
    ("backbone.fpn_output{n}.norm", "neck.fpn_convs.{n}.bn", 2),
    ("proposal_generator.rpn_head.conv", "rpn_head.rpn_conv", 0),
    ("proposal_generator.rpn_head.objectness_logits", "rpn_head.rpn_cls", 0),
    ("proposal_generator.rpn_head.anchor_deltas", "rpn_head.rpn_reg", 0),
    ("roi_heads.box_head{k}.conv{n}", "roi_head.bbox_head{k}.shared_convs.{n}.conv", 1),
    ("roi_heads.box_head{k}.conv{n}.norm", "roi_head.bbox_head{k}.shared_convs.{n}.bn", 1),
    ("roi_heads.box_head{k}.fc{n}", "roi_head.bbox_head{k}.shared_fcs.{n}", 1),
    ("roi_heads.box_predictor{k}.cls_score", "roi_head.bbox_head{k}.fc_cls", 0),
    ("roi_heads.box_predictor{k}.bbox_pred", "roi_head.bbox_head{k}.fc_reg", 0),
    ("roi_heads.mask_head.mask_fcn{n}", "roi_head.mask_head.convs.{n}.conv", 1),
    ("roi_heads.mask_head.mask_fcn{n}.norm", "roi_head.mask_head.convs.{n}.bn", 1),
    ("roi_heads.mask_head.deconv", "roi_head.mask_head.upsample", 0),
    ("roi_heads.mask_head.predictor", "roi_head.mask_head.conv_logits", 0),
)
_HEADS = ("rpn_head.", "roi_head.", "proposal_generator.", "roi_heads.", "backbone.fpn_")


def is_detector(keys: Iterable[str]) -> bool:
    """Whether keys are of a detector of mmdetection or detectron2, heads or FPN included."""
    return any(key.startswith(_HEADS) for key in keys)


def is_detectron2(keys: Iterable[str]) -> bool:
    """Whether keys are of detectron2: a whole detector, or a backbone with or without prefix."""
    return any(key.removeprefix(BOTTOM_UP).startswith(("res2.", "stem.conv1")) for key in keys)


def is_plain(modules: Iterable[str]) -> bool:
    """Whether modules, in our names or theirs, are those of a ResNet without a deep stem."""
    return any(module in ("stem.conv1", "conv1") for module in modules)


def from_detectron2(module: str, plain: bool) -> str:
    """Our name of a module of detectron2's backbone, without its prefix; others stay."""
    match = _STAGE.fullmatch(module)
    if match is None or match[1] != "res":
        return (_PLAIN_STEM if plain else _STEM).get(module, module)
    part = (_PLAIN_BLOCK if plain else _BLOCK).get(match[4], match[4])
    return f"layer{int(match[2]) - 1}.{match[3]}.{part}"


def to_detectron2(module: str, plain: bool) -> str:
    """The inverse of :func:`from_detectron2`."""
    match = _STAGE.fullmatch(module)
    if match is None or match[1] != "layer":
        return invert(_PLAIN_STEM if plain else _STEM).get(module, module)
    part = invert(_PLAIN_BLOCK if plain else _BLOCK).get(match[4], match[4])
    return f"res{int(match[2]) + 1}.{match[3]}.{part}"


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template).replace(r"\{n\}", r"(?P<n>\d{1,2})")
    return re.compile(text.replace(r"\{k\}", r"(?P<k>(?:\.\d)?)"))


def _part_name(module: str, ours: bool) -> str:
    """A module of FPN or heads in the other's names; what has none stays."""
    for row in _PARTS:
        here, there, more = (row[1], row[0], row[2]) if ours else (*row[:2], -row[2])
        if match := _pattern(here).fullmatch(module):
            found = match.groupdict()
            number = int(found.get("n") or 0) + more
            return module if number < 0 else there.format(n=number, k=found.get("k"))
    return module


def part_from_detectron2(module: str) -> str:
    """Our name of a module of detectron2's FPN or heads; others stay."""
    return _part_name(module, ours=False)


def part_to_detectron2(module: str) -> str:
    """The inverse of :func:`part_from_detectron2`."""
    return _part_name(module, ours=True)


def _count(modules: Iterable[str], start: str) -> int:
    """How many ``start.0.``, ``start.1.``, ... there must be."""
    pattern = re.compile(rf"{re.escape(start)}\.(\d{{1,2}})(?:\..+)?")
    return max((int(m[1]) + 1 for name in modules if (m := pattern.fullmatch(name))), default=0)


def _convs(modules: set[str], start: str, least: int = 0) -> dict[str, str]:
    """A row of ConvModules, at least ``least``: with a norm, or with a bias."""
    count = max(least, _count(modules, start))
    with_norm = any(f"{start}.{index}.bn" in modules for index in range(count))
    expected = {}
    for index in range(count):
        expected[f"{start}.{index}.conv"] = "conv" if with_norm else "linear"
        if with_norm:
            expected[f"{start}.{index}.bn"] = "norm"
    return expected


def _heads(modules: set[str], start: str) -> list[str]:
    """``start``, or for a cascade ``start.0``, ``start.1``, ..."""
    count = _count(modules, start)
    return [f"{start}.{index}" for index in range(count)] if count else [start]


def expected_parts(modules: set[str]) -> dict[str, str]:
    """Every module (in our names) of the FPN and heads that ``modules`` shows, with its kind."""
    expected = _convs(modules, "neck.lateral_convs", least=1)
    expected.update(_convs(modules, "neck.fpn_convs", least=1))
    expected.update(dict.fromkeys(("rpn_head.rpn_conv", "rpn_head.rpn_cls"), "linear"))
    expected["rpn_head.rpn_reg"] = "linear"
    for head in _heads(modules, "roi_head.bbox_head"):
        expected.update(_convs(modules, f"{head}.shared_convs"))
        fully = max(1, _count(modules, f"{head}.shared_fcs"))
        names = [*(f"shared_fcs.{index}" for index in range(fully)), "fc_cls", "fc_reg"]
        expected.update({f"{head}.{name}": "linear" for name in names})
    if any(module.startswith("roi_head.mask_head.") for module in modules):
        for head in _heads(modules, "roi_head.mask_head"):
            expected.update(_convs(modules, f"{head}.convs"))
            expected.update({f"{head}.upsample": "linear", f"{head}.conv_logits": "linear"})
    return expected


def mask_heads(keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """``{key: keys}`` of the mask heads that mmdetection's cascade has for detectron2's one.

    mmdetection's cascade has a mask head a stage, all of which see the last boxes, and takes the
    mean of their masks: with the same weights in each it is detectron2's single head.
    """
    names = list(keys)
    stages = _count({key.rpartition(".")[0] for key in names}, "roi_head.bbox_head")
    start = "roi_head.mask_head."
    return {
        key: tuple(f"{start}{stage}.{key[len(start) :]}" for stage in range(stages))
        for key in names
        if stages and key.startswith(start) and not key[len(start)].isdigit()
    }


def single_mask_head(keys: Iterable[str]) -> Mapping[str, str]:
    """``{key: key without its stage}`` of the mask heads of a cascade."""
    pattern = re.compile(r"(roi_head\.mask_head\.)\d\.(.+)")
    return {key: f"{m[1]}{m[2]}" for key in keys if (m := pattern.fullmatch(key))}
