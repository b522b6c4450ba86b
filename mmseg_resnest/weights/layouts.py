# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The names that each code base gives to the parameters of ResNeSt and of its heads.

Everything here is about *modules* (``layer1.0.bn1``); the names of a module's tensors
(``weight``, ``running_mean`` ...) are the same everywhere except in GluonCV, see
:data:`GLUON_LEAVES`. A module table maps the foreign name to ours; names that it does not hold
keep their name. No torch in this file: it is data.

Sources: the checkpoints of ``zhanghang1989/ResNeSt`` and ``zhanghang1989/PyTorch-Encoding``
(published), timm, MMSegmentation, MMPretrain (``ConvModule`` stem, and no pool in front of the
shortcut of a stage with stride 1), GluonCV 0.7. Detectors: :mod:`.detector_names`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# --- backbone -------------------------------------------------------------------------------

#: The stem in our (published) names: three convolutions with a norm behind each.
STEM_CONVS = ("conv1.0", "conv1.3", "conv1.6")
STEM_NORMS = ("conv1.1", "conv1.4", "bn1")

#: MMSegmentation keeps the whole stem in one Sequential.
OPENMMLAB_STEM = {
    "stem.0": "conv1.0",
    "stem.1": "conv1.1",
    "stem.3": "conv1.3",
    "stem.4": "conv1.4",
    "stem.6": "conv1.6",
    "stem.7": "bn1",
}

#: MMPretrain builds the stem of three ConvModules.
MMPRETRAIN_STEM = {
    "stem.0.conv": "conv1.0",
    "stem.0.bn": "conv1.1",
    "stem.1.conv": "conv1.3",
    "stem.1.bn": "conv1.4",
    "stem.2.conv": "conv1.6",
    "stem.2.bn": "bn1",
}

#: GluonCV's names for the tensors of a norm layer.
GLUON_LEAVES = {"gamma": "weight", "beta": "bias"}

#: A residual block with split attention, and the plain block (radix 0) that some ports write.
SPLIT_BLOCK = {
    "conv1": "conv",
    "bn1": "norm",
    "conv2.conv": "conv",
    "conv2.bn0": "norm",
    "conv2.fc1": "linear",
    "conv2.bn1": "norm",
    "conv2.fc2": "linear",
    "conv3": "conv",
    "bn3": "norm",
}
PLAIN_BLOCK = {
    "conv1": "conv",
    "bn1": "norm",
    "conv2": "conv",
    "bn2": "norm",
    "conv3": "conv",
    "bn3": "norm",
}
#: The shortcut of a stage's first block; index 0 is the pool.
SHORTCUT = {"downsample.1": "conv", "downsample.2": "norm"}
#: That of a plain ResNet, which has no pool.
PLAIN_SHORTCUT = {"downsample.0": "conv", "downsample.1": "norm"}
NUM_STAGES = 4

_BLOCK = re.compile(r"layer([1-9])\.(0|[1-9]\d*)\.(.+)")


def split_block(module: str) -> tuple[int, int, str] | None:
    """``layer2.0.conv2.fc1`` -> ``(2, 0, "conv2.fc1")``, or None outside blocks."""
    match = _BLOCK.fullmatch(module)
    return (int(match[1]), int(match[2]), match[3]) if match else None


# --- heads ----------------------------------------------------------------------------------

#: Kinds of module and the tensors each must have ("norm": see ``convert``).
LEAVES = {
    "conv": ("weight",),
    "linear": ("weight", "bias"),
    "encoding": ("codewords", "scale"),
}

# {published module: (our module, kind)}. Kinds with a "?" may be absent as a group.
_FCN = {
    "conv5.0": ("convs.0.conv", "conv"),
    "conv5.1": ("convs.0.bn", "norm"),
    "conv5.4": ("conv_seg", "linear"),
}
_PSP = {
    **{
        f"conv5.0.conv{index + 1}.{part}": (f"psp_modules.{index}.1.{name}", kind)
        for index in range(4)
        for part, name, kind in ((0, "conv", "conv"), (1, "bn", "norm"))
    },
    "conv5.1": ("bottleneck.conv", "conv"),
    "conv5.2": ("bottleneck.bn", "norm"),
    "conv5.5": ("conv_seg", "linear"),
}


def _deeplab(branches: str) -> dict[str, tuple[str, str]]:
    """DeepLabV3; the published code and GluonCV differ in the name of a branch."""
    table = {}
    for index in range(4):
        table[f"{branches}{index}.0"] = (f"aspp.{index}.conv", "conv")
        table[f"{branches}{index}.1"] = (f"aspp.{index}.bn", "norm")
    table[f"{branches}4.gap.1"] = ("image_pool.conv", "conv")
    table[f"{branches}4.gap.2"] = ("image_pool.bn", "norm")
    table["aspp.project.0"] = ("project.conv", "conv")
    table["aspp.project.1"] = ("project.bn", "norm")
    table["block.0"] = ("bottleneck.conv", "conv")
    table["block.1"] = ("bottleneck.bn", "norm")
    table["block.4"] = ("conv_seg", "linear")
    return table


_ENC = {
    "conv5.0": ("bottleneck.conv", "conv"),
    "conv5.1": ("bottleneck.bn", "norm"),
    "encmodule.encoding.0": ("enc_module.encoding_project.conv", "conv"),
    "encmodule.encoding.1": ("enc_module.encoding_project.bn", "norm"),
    "encmodule.encoding.3": ("enc_module.encoding.0", "encoding"),
    "encmodule.encoding.4": ("enc_module.encoding.1", "norm"),
    "encmodule.fc.0": ("enc_module.fc.0", "linear"),
    "conv6.1": ("conv_seg", "linear"),
}
#: Only with the semantic encoding loss.
_ENC_SE = {"encmodule.selayer": ("se_layer", "linear")}


def _enc_laterals(count: int) -> dict[str, tuple[str, str]]:
    """The lateral inputs of EncNet: ``count`` 1x1 convolutions and one that joins them."""
    table = {}
    for index in range(count):
        table[f"connect.{index}.0"] = (f"lateral_convs.{index}.conv", "conv")
        table[f"connect.{index}.1"] = (f"lateral_convs.{index}.bn", "norm")
    table["fusion.0"] = ("fusion.conv", "conv")
    table["fusion.1"] = ("fusion.bn", "norm")
    return table


_GLUON_FCN = {
    "block.0": ("convs.0.conv", "conv"),
    "block.1": ("convs.0.bn", "norm"),
    "block.4": ("conv_seg", "linear"),
}

#: Prefixes of (backbone, main head, auxiliary head) in a segmentation model; of detectron2's
#: detectors, whose heads have names of several kinds, the backbone's alone.
PREFIXES = {
    "published": ("pretrained.", "head.", "auxlayer."),
    "gluoncv": ("", "head.", "auxlayer."),
    "openmmlab": ("backbone.", "decode_head.", "auxiliary_head."),
    "mmseg-resnest": ("backbone.", "decode_head.", "auxiliary_head."),
    "detectron2": ("backbone.bottom_up.", "\0", "\0"),
}


def _has(modules: set[str], *prefixes: str) -> bool:
    return any(module == p or module.startswith(p + ".") for module in modules for p in prefixes)


def _lateral_count(modules: set[str], prefix: str) -> int:
    indices = [
        int(match[1]) for m in modules if (match := re.match(rf"{prefix}\.(\d{{1,2}})\.", m))
    ]
    return max(indices, default=-1) + 1


def foreign_head_table(layout: str, modules: set[str]) -> dict[str, tuple[str, str]]:
    """Which head these modules of a ``published`` or ``gluoncv`` checkpoint are.

    Returns ``{their module: (our module, kind)}``, every module that the head must have, without
    the head's prefix.
    """
    if layout == "gluoncv":
        return _deeplab("aspp.concurent.") if _has(modules, "aspp") else _GLUON_FCN
    if _has(modules, "aspp", "block"):
        return _deeplab("aspp.b")
    if _has(modules, "encmodule", "conv6"):
        table = dict(_ENC)
        if _has(modules, "encmodule.selayer"):
            table.update(_ENC_SE)
        if _has(modules, "connect", "fusion"):
            table.update(_enc_laterals(_lateral_count(modules, "connect")))
        return table
    if _has(modules, *(f"conv5.0.conv{index}" for index in range(1, 5)), "conv5.5"):
        return _PSP
    return _FCN


def published_head_table(modules: set[str]) -> dict[str, str]:
    """``{our module: published module}`` of the published head that fits our modules best.

    Modules of other heads are not in it.
    """
    if _has(modules, "aspp", "project"):
        table = _deeplab("aspp.b")
    elif _has(modules, "enc_module"):
        laterals = _lateral_count(modules, "lateral_convs")
        table = {**_ENC, **_ENC_SE, **_enc_laterals(laterals)}
    elif _has(modules, "psp_modules"):
        table = _PSP
    else:
        table = _FCN
    return {ours: theirs for theirs, (ours, _) in table.items()}


def invert(table: Mapping[str, str]) -> dict[str, str]:
    """The table that undoes a one-to-one ``table``."""
    return {value: key for key, value in table.items()}
