# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Renames our models' state dicts for other code bases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from . import detector_names, layouts
from .convert import Conversion, analyse, has_split_attention
from .state_dict import list_keys

EXPORT_LAYOUTS = ("published", "timm", "openmmlab", "detectron2", "mmseg-resnest")


def _rename_modules(keys: Iterable[str], table: Mapping[str, str]) -> dict[str, str]:
    parts = {key: key.rpartition(".") for key in keys}
    return {key: f"{table.get(module, module)}.{leaf}" for key, (module, _, leaf) in parts.items()}


def export_state_dict(state_dict: Mapping[str, Any], layout: str) -> dict[str, Tensor]:
    """Renames a state dict of one of our models for another code base.

    Args:
        state_dict: Our names: a backbone without a prefix, a segmentation model or a detector.
        layout: ``published`` (backbone, or a segmentation model with a published head), ``timm``
            (backbone only), ``openmmlab`` (MMSegmentation, MMDetection), ``detectron2`` (backbone
            or detector) or ``mmseg-resnest``.

    Returns:
        The same tensors under that layout's names. :func:`convert_state_dict` undoes it exactly.
        MMSegmentation's has none for a classifier (``fc``), which is left out.

    Raises:
        UserError: ``layout`` is unknown, ``state_dict`` is not one of ours, or the layout has no
            name for some of its keys; the message lists them.
    """
    if layout not in EXPORT_LAYOUTS:
        message = f"{layout!r} is not one of {', '.join(EXPORT_LAYOUTS)}"
        raise UserError("argument", "layout", message)
    source = analyse(state_dict)
    ours = source.layout == "mmseg-resnest"
    if not ours and not (source.layout == "published" and not source.is_segmentor):
        message = f"has layout {source.layout!r}; pass it through convert_state_dict first"
        raise UserError("checkpoint", "state dict", message)
    everything = dict(source.state_dict)
    if source.kind == "backbone":
        everything.update(source.classifier)
    if layout == "mmseg-resnest":
        return everything
    if layout == "detectron2":
        return _for_detectron2(source)
    groups: dict[str, list[str]] = {"backbone.": [], "decode_head.": [], "auxiliary_head.": []}
    strangers = []
    whole = source.is_segmentor or source.is_detector
    for key in source.state_dict:
        start = f"{key.partition('.')[0]}." if whole else "backbone."
        if start in groups:
            groups[start].append(key[len(start) :] if whole else key)
        else:
            strangers.append(key)
    resnest = has_split_attention(groups["backbone."]) or "conv1.0.weight" in groups["backbone."]
    if source.is_detector and layout != "openmmlab":
        message = "has no names for detectors; openmmlab and detectron2 have"
        raise UserError("checkpoint", f"layout {layout}", message)
    if layout == "timm" and source.is_segmentor:
        message = "timm has no segmentation models; choose another layout, or give the backbone "
        message += "alone (the keys after 'backbone.')"
        raise UserError("checkpoint", "layout timm", message)
    if not resnest and layout != "openmmlab":
        message = "the backbone is not a ResNeSt; only layout openmmlab has names for it"
        raise UserError("checkpoint", f"layout {layout}", message)

    if layout == "openmmlab":
        table = layouts.invert(layouts.OPENMMLAB_STEM) if resnest else {}
        renamed = _rename_modules(groups["backbone."], table)
        start = "backbone." if whole else ""
        names = {start + key: start + name for key, name in renamed.items()}
        return {names.get(key, key): value for key, value in source.state_dict.items()}

    # published or timm
    if not source.is_segmentor:
        return everything
    targets = dict(zip(groups, layouts.PREFIXES["published"], strict=True))
    names = {f"backbone.{key}": f"pretrained.{key}" for key in groups["backbone."]}
    for start in ("decode_head.", "auxiliary_head."):
        table = layouts.published_head_table({key.rpartition(".")[0] for key in groups[start]})
        for key, name in _rename_modules(groups[start], table).items():
            if key.rpartition(".")[0] in table:
                names[start + key] = targets[start] + name
            else:
                strangers.append(start + key)
    if strangers:
        message = f"has no name for {len(strangers)} keys: {list_keys(strangers)}; only the "
        message += "published FCN, PSP, EncNet and DeepLabV3 heads can be exported to it"
        raise UserError("checkpoint", "layout published", message)
    return {names[key]: value for key, value in source.state_dict.items()}


def _for_detectron2(source: Conversion) -> dict[str, Tensor]:
    """A backbone or a detector in the names of detectron2 and of the authors' fork of it."""
    layout = "layout detectron2"
    if source.is_segmentor:
        message = "has names for backbones and detectors; choose another layout"
        raise UserError("checkpoint", layout, message)
    start = "backbone." if source.is_detector else ""
    plain = f"{start}conv1.weight" in source.state_dict
    mask = detector_names.single_mask_head(source.state_dict)
    result: dict[str, Tensor] = {}
    strangers, differing = [], []
    for key, value in source.state_dict.items():
        module, _, leaf = mask.get(key, key).rpartition(".")
        if source.is_detector and not module.startswith(start):
            theirs = detector_names.part_to_detectron2(module)
            known = theirs != module
        else:
            theirs = detector_names.to_detectron2(module.removeprefix(start), plain)
            theirs, known = f"{detector_names.BOTTOM_UP}{theirs}", True
        name = f"{theirs}.{leaf}"
        if not known:
            strangers.append(key)
        elif name in result and not torch.equal(result[name], value):
            differing.append(key)
        result.setdefault(name, value)
    if strangers:
        message = f"has no name for {len(strangers)} keys: {list_keys(strangers)}"
        raise UserError("checkpoint", layout, message)
    if differing:
        message = (
            "has one mask head for all stages of a cascade, and these are not the same in "
            f"each: {list_keys(differing)}"
        )
        raise UserError("checkpoint", layout, message)
    return result
