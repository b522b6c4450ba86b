# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Turns state dicts from the layouts in which ResNeSt's weights are published into ours.

A conversion only renames: every tensor keeps its type, its values and (where it was a tensor
already) its memory. Every key is accounted for: it is placed, it is left out because it is the
ImageNet classifier, which a segmentation model does not have (unless it is asked for), or a
constant that a detector's config says as well, or the conversion fails and lists it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..errors import UserError
from . import detector_names, layouts
from .parts import COUNTER, Part, place_backbone, place_detector, place_head
from .state_dict import as_tensor, list_keys, unwrap_state_dict


def has_split_attention(keys: Iterable[str]) -> bool:
    """Whether backbone keys are of a ResNeSt; with MMSegmentation's stem a ResNet has the rest."""
    return any(".conv2.conv." in key for key in keys)


def layout_of(keys: Iterable[str], label: str = "state dict") -> str:
    """The layout of a checkpoint, told from its keys.

    Returns:
        ``published`` (``zhanghang1989/ResNeSt`` and ``PyTorch-Encoding``; timm's names and our
        backbone's are the same ones), ``openmmlab`` (MMSegmentation), ``mmpretrain``,
        ``gluoncv``, ``detectron2`` (the authors' detectors) or ``mmseg-resnest`` (our models,
        baselines included). ``openmmlab`` and ``mmseg-resnest`` are of detectors as well.

    Raises:
        UserError: The keys belong to none of them; the message lists them.
    """
    names = list(keys)
    first = {key.partition(".")[0] for key in names}
    if "pretrained" in first:
        return "published"
    if detector_names.is_detectron2(names):
        return "detectron2"
    if "backbone" in first:
        backbone = [key[9:] for key in names if key.startswith("backbone.")]
        has_classifier = any(key.startswith("head.fc.") for key in names)
        if _has_conv_modules(backbone):
            return "mmpretrain"
        if any(key.startswith("stem.") for key in backbone):
            if has_classifier:
                return "mmpretrain"
            return "openmmlab" if has_split_attention(backbone) else "mmseg-resnest"
        if any(key.startswith(("conv1.", "layer1.")) for key in backbone):
            return "mmseg-resnest"
    elif "stem" in first:
        return "mmpretrain" if _has_conv_modules(names) else "openmmlab"
    elif any(key.startswith(("conv1.0.", "layer1.0.")) for key in names):
        leaves = {key.rpartition(".")[2] for key in names}
        return "gluoncv" if leaves & set(layouts.GLUON_LEAVES) else "published"
    raise UserError(
        "checkpoint",
        label,
        f"not of a ResNeSt in a known layout; its {len(names)} keys are {list_keys(names)}. Known "
        "layouts: published (backbones, segmentation models), timm, MMSegmentation, MMPretrain, "
        "MMDetection, detectron2, GluonCV, mmseg-resnest",
    )


#: Layouts that detectors have, besides backbones and, but for detectron2, segmentation models.
_OF_DETECTORS = ("openmmlab", "mmseg-resnest", "detectron2")


def _has_conv_modules(keys: Iterable[str]) -> bool:
    return any(key.startswith(f"stem.{index}.conv.") for key in keys for index in range(3))


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint."""

    layout: str  # see layout_of
    is_segmentor: bool  # a whole segmentation model
    is_detector: bool  # a whole detector; if neither, a backbone alone (without a prefix)
    state_dict: dict[str, Tensor]  # under our names, in the order of the source
    left_out: tuple[str, ...]  # keys of the ImageNet classifier, or a detector's constants
    added: tuple[str, ...]  # counters (num_batches_tracked, zero) that the source did not have
    classifier: dict[str, Tensor]  # the ImageNet classifier under our names: fc.weight, fc.bias

    @property
    def why_left_out(self) -> str:
        """Why the keys that are left out have no place, for messages."""
        if self.layout == "detectron2":
            return "the config has these constants"
        return "a segmentation model has no ImageNet classifier"

    @property
    def kind(self) -> str:
        """What it is, for messages."""
        whole = "segmentation model" if self.is_segmentor else ""
        return "detector" if self.is_detector else whole or "backbone"


def _left_out(keys: Iterable[str], layout: str, backbone: str) -> tuple[str, ...]:
    """The keys that are left out: the ImageNet classifier's, or constants of detectron2."""
    if layout == "detectron2":
        return tuple(key for key in keys if detector_names.CONSTANTS.fullmatch(key))
    heads = ["head.fc.", "fc."] if layout in ("mmpretrain", "mmseg-resnest") else []
    starts = [f"{backbone}fc.", *heads]
    names = {f"{start}{leaf}" for start in starts for leaf in ("weight", "bias")}
    return tuple(key for key in keys if key in names)


def _prefixes(layout: str, keys: Iterable[str]) -> tuple[str, str, str]:
    """The prefixes of backbone, main head and auxiliary head in this checkpoint."""
    backbone, head, auxiliary = layouts.PREFIXES.get(layout, ("backbone.", "\0", "\0"))
    if backbone and not any(key.startswith(backbone) for key in keys):
        return "", "\0", "\0"  # a bare backbone: no key starts with a NUL
    return backbone, head, auxiliary


def analyse(record: Mapping[str, Any], label: str = "state dict") -> Conversion:
    """As :func:`convert_state_dict`; says what became of the keys as well."""
    raw = unwrap_state_dict(record, label)
    layout = layout_of(raw, label)
    tensors = {key: as_tensor(key, value, label) for key, value in raw.items()}
    prefix, head_prefix, auxiliary_prefix = _prefixes(layout, tensors)
    left_out = _left_out(tensors, layout, prefix)

    detector = layout in _OF_DETECTORS and detector_names.is_detector(tensors)

    groups: dict[str, list[str]] = {prefix: [], head_prefix: [], auxiliary_prefix: []}
    rest, necks, strangers = [], [], []
    # the bare backbone's prefix is empty: the longest prefix that fits is the part's
    order = sorted(groups, key=len, reverse=True)
    for key in tensors:
        if key in left_out:
            continue
        place = next((start for start in order if key.startswith(start)), None)
        if place is not None:
            groups[place].append(key[len(place) :])
        elif detector:
            rest.append(key)
        elif prefix == "backbone." and key.startswith("neck."):
            necks.append(key[5:])
        else:
            strangers.append(key)

    is_segmentor = bool(groups[head_prefix] or groups[auxiliary_prefix])
    baseline = layout == "mmseg-resnest" and any(
        key.startswith(("stem.", "conv1.weight")) for key in groups[prefix]
    )
    parts: list[tuple[str, str, Part]] = []
    if baseline:
        # a ResNet of the stack: its names are its own
        part = Part(groups[prefix])
        part.pass_through({key: tensors[prefix + key].ndim for key in groups[prefix]})
    else:
        # a bare backbone without a classifier may be one of ours, too
        foreign = layout != "published" or is_segmentor or bool(left_out)
        all_stages = layout != "mmseg-resnest" and foreign
        part = place_backbone(layout, groups[prefix], all_stages)
    parts.append((prefix, "backbone." if is_segmentor or detector else "", part))
    if detector:
        parts.append(("", "", place_detector(layout, rest)))
    for start, ours in ((head_prefix, "decode_head."), (auxiliary_prefix, "auxiliary_head.")):
        if groups[start] or (is_segmentor and ours == "decode_head."):
            parts.append((start, ours, place_head(layout, groups[start], tensors, start)))
            if not groups[start]:
                parts[-1][2].missing = ["*"]
    if necks:
        part = Part(necks)
        part.pass_through({key: tensors["neck." + key].ndim for key in necks})
        parts.append(("neck.", "neck.", part))

    missing = [start + key for start, _, part in parts for key in part.missing]
    unknown = strangers + [start + key for start, _, part in parts for key in part.unknown]
    if missing or unknown:
        found = [
            f"{len(keys)} keys {what}: {list_keys(keys)}; "
            for keys, what in ((missing, "are missing"), (unknown, "have no place"))
            if keys
        ]
        message = f"looks like layout {layout!r} but does not convert; {''.join(found)}"
        message += "check that the file is complete and holds a ResNeSt model"
        if any(".conv2_offset." in key for key in unknown):
            message += " without deformable convolutions"
        raise UserError("checkpoint", label, message)

    names = {start + key: ours + name for start, ours, p in parts for key, name in p.keys.items()}
    ordered = {names[key]: value for key, value in tensors.items() if key in names}
    if layout == "detectron2":
        copies = detector_names.mask_heads(ordered)
        ordered = {new: v for key, v in ordered.items() for new in copies.get(key, (key,))}
    state_dict, added = _with_counters(ordered)
    classifier = {
        f"fc.{key.rpartition('.')[2]}": tensors[key] for key in left_out if layout != "detectron2"
    }
    return Conversion(layout, is_segmentor, detector, state_dict, left_out, added, classifier)


def _with_counters(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Adds the counters of batch norms that files from before PyTorch 0.4.1 and MXNet lack."""
    result: dict[str, Tensor] = {}
    added = []
    for key, value in state_dict.items():
        result[key] = value
        module, _, leaf = key.rpartition(".")
        counter = f"{module}.{COUNTER}"
        if leaf == "running_var" and counter not in state_dict:
            result[counter] = torch.zeros((), dtype=torch.int64, device=value.device)
            added.append(counter)
    return result, tuple(added)


def convert_state_dict(
    state_dict: Mapping[str, Any], label: str = "state dict", classifier: bool = False
) -> dict[str, Tensor]:
    """Turns a ResNeSt checkpoint of any known layout into the names of our models.

    Args:
        state_dict: Names to tensors or NumPy arrays, in the layout of a published backbone or
            segmentation model, timm, MMSegmentation, MMDetection, detectron2, MMPretrain,
            GluonCV or our own; possibly under ``state_dict`` or ``model``, or with ``module.``
            before every name.
        label: What to call it in errors, such as its file.
        classifier: Keep an ImageNet classifier, for a :class:`~mmseg_resnest.models.ResNeSt` that
            has one.

    Returns:
        The tensors under our names: for a backbone without a prefix, for a segmentation model
        ``backbone.*``, ``decode_head.*``, ``auxiliary_head.*``, for a detector MMDetection's:
        ``backbone.*``, ``neck.*``, ``rpn_head.*``, ``roi_head.*``. Types and values are those of
        the source, memory is shared with it where possible. The one mask head of a cascade of
        detectron2 becomes that of each stage, which MMDetection averages.
        Counters ``num_batches_tracked`` that it lacks are added as zeros. An ImageNet classifier
        is ``fc.*`` behind the backbone's, or is left out like constants of detectron2, which one
        log line says.

    Raises:
        UserError: The layout is unknown, keys have no place, or keys are missing (such as a
            convolution without its norm); the message lists them.
    """
    conversion = analyse(state_dict, label)
    if classifier and conversion.kind == "backbone":
        return {**conversion.state_dict, **conversion.classifier}
    if conversion.left_out:
        print_log(
            f"left out of the checkpoint, {conversion.why_left_out}: "
            + list_keys(conversion.left_out),
            logger="current",
            level=logging.INFO,
        )
    return conversion.state_dict
