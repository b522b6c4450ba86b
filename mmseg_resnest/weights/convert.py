# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Turns state dicts between the layouts in which ResNeSt's weights are published and ours.

A conversion only renames: every tensor keeps its type, its values and (where it was a tensor
already) its memory. Every key is accounted for: it is placed, it is the ImageNet classifier that
a segmentation model has no use for and is left out, or the conversion fails and lists it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from ..errors import UserError
from . import layouts
from .names import check_names, list_keys

EXPORT_LAYOUTS = ("published", "timm", "openmmlab", "mmseg-resnest")

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_MAX_WRAPPERS = 4
# what DistributedDataParallel and torch.compile put before every key
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var")
_CLASSIFIER_LEAVES = ("weight", "bias")


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Attributes:
        layout: The layout that was found, see :func:`detect_layout`.
        is_segmentor: Whether it is a whole segmentation model (keys ``backbone.*``,
            ``decode_head.*``, ``auxiliary_head.*``) and not a backbone alone (no prefix).
        state_dict: The tensors under our names, in the order of the source.
        left_out: Keys of the source that have no place here: the ImageNet classifier.
        added: Counters (``num_batches_tracked``, zero) that the source did not have.
    """

    layout: str
    is_segmentor: bool
    state_dict: dict[str, Tensor]
    left_out: tuple[str, ...]
    added: tuple[str, ...]


# --- getting at the tensors -----------------------------------------------------------------


def unwrap_state_dict(record: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict inside a checkpoint record, without the prefixes of wrappers.

    Looks under ``state_dict``, ``model_state_dict`` and ``model``, and takes ``module.`` and
    ``_orig_mod.`` off when every key has it.

    Raises:
        UserError: It is no mapping with string keys, or an empty one, or a key is too long.
    """
    found: Any = record
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(found, Mapping):
            break
        inner = [found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)]
        if not inner:
            break
        found = inner[0]
    state_dict = check_names(found)
    if not state_dict:
        raise UserError("empty", "", "the checkpoint's state dict is empty")
    start, ends = 0, (min(state_dict), max(state_dict))  # what both begin with, all do
    while prefix := next(
        (p for p in _WRAPPER_PREFIXES if all(key.startswith(p, start) for key in ends)), ""
    ):
        start += len(prefix)
    return {key[start:]: value for key, value in state_dict.items()}


def as_tensor(name: str, value: Any) -> Tensor:
    """``value`` as a plain tensor of the same type, sharing its memory where that is possible.

    Raises:
        UserError: ``value`` is neither a dense tensor nor a numeric array.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise UserError(
                "checkpoint",
                f"checkpoint key {name!r}",
                "only dense tensors with values are supported",
            )
        return value.detach()
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        if not native.flags.writeable or any(stride < 0 for stride in native.strides):
            native = native.copy()
        try:
            return torch.from_numpy(native)
        except TypeError as error:
            raise UserError(
                "checkpoint",
                f"checkpoint key {name!r}",
                f"arrays of type {value.dtype} are not supported",
            ) from error
    raise UserError(
        "checkpoint",
        f"checkpoint key {name!r} holds a {type(value).__name__}, not a tensor",
        "give the model's state dict",
    )


# --- recognising ----------------------------------------------------------------------------


def _is_resnest(keys: Iterable[str]) -> bool:
    """Whether backbone keys show split attention (in MMSegmentation's stem a ResNet may be)."""
    return any(".conv2.conv." in key for key in keys)


def _detect(keys: Iterable[str]) -> str:
    names = list(keys)
    first = {key.partition(".")[0] for key in names}
    if "pretrained" in first:
        return "published"
    if "backbone" in first:
        backbone = [key[9:] for key in names if key.startswith("backbone.")]
        if any(key.startswith(f"stem.{i}.conv.") for key in backbone for i in range(3)):
            return "mmpretrain"
        if any(key.startswith("stem.") for key in backbone):
            if any(key.startswith("head.fc.") for key in names):
                return "mmpretrain"
            return "openmmlab" if _is_resnest(backbone) else "mmseg-resnest"
        if any(key.startswith(("conv1.", "layer1.")) for key in backbone):
            return "mmseg-resnest"
    elif "stem" in first:
        if any(key.startswith(f"stem.{i}.conv.") for key in names for i in range(3)):
            return "mmpretrain"
        return "openmmlab"
    elif any(key.startswith(("conv1.0.", "layer1.0.")) for key in names):
        leaves = {key.rpartition(".")[2] for key in names}
        return "gluoncv" if leaves & set(layouts.GLUON_LEAVES) else "published"
    raise UserError(
        "checkpoint",
        f"not a checkpoint of ResNeSt in a known layout; its {len(names)} keys are",
        f"{list_keys(names)}. Known layouts: the published backbones and segmentation models, "
        "timm, MMSegmentation, MMPretrain, GluonCV, mmseg-resnest",
    )


def detect_layout(state_dict: Mapping[str, Any]) -> str:
    """The layout of a checkpoint, told from its keys.

    Args:
        state_dict: A state dict, possibly wrapped, see :func:`unwrap_state_dict`.

    Returns:
        ``published`` (``zhanghang1989/ResNeSt`` and ``PyTorch-Encoding``; timm's names and our
        backbone's are the same ones), ``openmmlab`` (MMSegmentation), ``mmpretrain``,
        ``gluoncv`` or ``mmseg-resnest`` (our segmentation models, baselines included).

    Raises:
        UserError: The keys belong to none of them; the message lists them.
    """
    return _detect(unwrap_state_dict(state_dict))


# --- one part of a model --------------------------------------------------------------------


class _Part:
    """A part of a checkpoint (backbone or head) on its way to our names.

    Attributes:
        keys: Source key to our key, both without the part's prefix.
        missing: Keys that the part must have and has not, in the source's names.
        unknown: Source keys without a place.
    """

    def __init__(self, keys: Iterable[str], leaves: Mapping[str, str] | None = None) -> None:
        self._leaves = dict(leaves or {})
        self.source: dict[str, dict[str, str]] = {}  # module -> {our leaf: source key}
        self.keys: dict[str, str] = {}
        self.missing: list[str] = []
        self.unknown: list[str] = []
        for key in keys:
            module, _, leaf = key.rpartition(".")
            there = self.source.setdefault(module, {})
            name = self._leaves.get(leaf, leaf)
            if name in there:
                self.unknown.append(key)  # `gamma` beside `weight`: one of the two is too many
            else:
                there[name] = key

    @property
    def modules(self) -> set[str]:
        return set(self.source)

    def place(self, names: Mapping[str, str], expected: Mapping[str, str]) -> None:
        """Renames the part and compares it with what it must be.

        Args:
            names: Source module to our module.
            expected: Our module to its kind: every module that must be there, and no other may.
        """
        ours_to_source = {ours: module for module, ours in names.items()}
        has_statistics = any(
            leaf in _STATISTICS for leaves in self.source.values() for leaf in leaves
        )
        norm_leaves: tuple[str, ...] = ("weight", "bias")
        if has_statistics:
            norm_leaves += _STATISTICS
        wanted: dict[str, str] = {}  # our module -> source module
        for module, kind in expected.items():
            source = ours_to_source.get(module, module)
            wanted[module] = source
            leaves = norm_leaves if kind == "norm" else layouts.LEAVES[kind]
            there = self.source.get(source, {}) if names.get(source, source) == module else {}
            theirs = layouts.invert(self._leaves) if kind == "norm" else {}
            self.missing += [
                f"{source}.{theirs.get(leaf, leaf)}" for leaf in leaves if leaf not in there
            ]
        for source, there in self.source.items():
            module = names.get(source, source)
            kind = expected.get(module, "") if wanted.get(module) == source else ""
            allowed = layouts.LEAVES.get(kind, ())
            if kind == "norm":
                allowed = (*norm_leaves, _COUNTER) if has_statistics else norm_leaves
            for leaf, key in there.items():
                if leaf in allowed:
                    self.keys[key] = f"{module}.{leaf}"
                else:
                    self.unknown.append(key)

    def pass_through(self, shapes: Mapping[str, int]) -> None:
        """Keeps the names of a head that is built the same here as there, whatever it is.

        Its modules are not known beforehand; what is checked holds for every head of the stack:
        tensors that come in pairs do, and a ConvModule has a convolution with either a bias or a
        norm behind it.

        Args:
            shapes: The number of dimensions of each tensor.
        """
        for module, there in self.source.items():
            parent, _, name = module.rpartition(".")
            siblings = [
                leaves["weight"]
                for other, leaves in self.source.items()
                if other.rpartition(".")[0] == parent and "weight" in leaves and other != module
            ]
            need: tuple[str, ...] = ()
            if any(leaf in there for leaf in (*_STATISTICS, _COUNTER)):
                need = _STATISTICS
                if "weight" in there or "bias" in there:
                    need += ("weight", "bias")
                if name == "bn" and not any(shapes[key] > 1 for key in siblings):
                    self.missing.append(f"{parent}.conv.weight")
            elif name in ("conv_seg", "se_layer"):
                need = ("weight", "bias")
            elif "bias" in there:
                need = ("weight",)
            elif "codewords" in there or "scale" in there:
                need = layouts.LEAVES["encoding"] if name == "0" else ()
            self.missing += [f"{module}.{leaf}" for leaf in need if leaf not in there]
            bare_conv = name == "conv" and "weight" in there and "bias" not in there
            if bare_conv and not any(shapes[key] == 1 for key in siblings):
                self.missing.append(f"{parent}.bn.weight")
            for leaf, key in there.items():
                self.keys[key] = f"{module}.{leaf}"


def _backbone_names(layout: str, source: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """``{source module: our module}`` where they differ; ``source``: see :class:`_Part`."""
    modules = set(source)
    if layout == "openmmlab":
        return dict(layouts.OPENMMLAB_STEM)
    if layout == "gluoncv":
        return {m: f"{m}0" for m in modules if layouts.split_block(m) and m.endswith(".conv2.bn")}
    if layout == "mmpretrain":
        by_sequential = any(m in layouts.OPENMMLAB_STEM for m in modules)
        names = dict(layouts.OPENMMLAB_STEM if by_sequential else layouts.MMPRETRAIN_STEM)
        for module in modules:
            # without a pool (stride 1) the shortcut's convolution is number 0, its norm number 1
            block = layouts.split_block(module)
            part = block[2] if block else ""
            is_norm = "bias" in source[module]
            if part == "downsample.0" or (part == "downsample.1" and is_norm):
                start = module[:-1]
                names[f"{start}0"] = f"{start}1"
                names[f"{start}1"] = f"{start}2"
        return names
    return {}


def _expected_backbone(ours: set[str], all_stages: bool) -> dict[str, str]:
    """Every module (in our names) of the ResNeSt whose blocks ``ours`` shows, with its kind.

    A model of ours may be built without its last stages; files of others have all four.
    """
    expected: dict[str, str] = {}
    for conv, norm in zip(layouts.STEM_CONVS, layouts.STEM_NORMS, strict=True):
        expected[conv] = "conv"
        expected[norm] = "norm"
    blocks: dict[int, int] = {}
    for module in ours:
        found = layouts.split_block(module)
        if found and found[0] <= layouts.NUM_STAGES and found[1] < 1000:
            blocks[found[0]] = max(blocks.get(found[0], 0), found[1] + 1)
    last = layouts.NUM_STAGES if all_stages else max(blocks, default=1)
    for stage in range(1, last + 1):
        for index in range(blocks.get(stage, 1)):
            start = f"layer{stage}.{index}"
            plain = f"{start}.bn2" in ours or f"{start}.conv2" in ours
            parts = dict(layouts.PLAIN_BLOCK if plain else layouts.SPLIT_BLOCK)
            if index == 0:
                parts.update(layouts.SHORTCUT)
            expected.update({f"{start}.{name}": kind for name, kind in parts.items()})
    return expected


def _place_backbone(layout: str, keys: list[str], all_stages: bool) -> _Part:
    part = _Part(keys, layouts.GLUON_LEAVES if layout == "gluoncv" else None)
    names = _backbone_names(layout, part.source)
    ours = {names.get(module, module) for module in part.modules}
    expected = _expected_backbone(ours, all_stages)
    if layout == "gluoncv":
        # so that a missing norm is called by GluonCV's name
        for module in expected:
            if module.endswith(".conv2.bn0"):
                names.setdefault(module[:-1], module)
    part.place(names, expected)
    return part


def _place_head(layout: str, keys: list[str], tensors: Mapping[str, Tensor], prefix: str) -> _Part:
    if layout in ("published", "gluoncv"):
        part = _Part(keys, layouts.GLUON_LEAVES if layout == "gluoncv" else None)
        table = layouts.foreign_head_table(layout, part.modules)
        part.place({theirs: ours for theirs, (ours, _) in table.items()}, dict(table.values()))
    else:
        part = _Part(keys)
        part.pass_through({key: tensors[prefix + key].ndim for key in keys})
    return part


# --- a whole checkpoint ---------------------------------------------------------------------


def _classifier_keys(keys: Iterable[str], layout: str, backbone: str) -> tuple[str, ...]:
    """The ImageNet classifier's keys among ``keys``."""
    starts = [f"{backbone}fc."]
    if layout == "mmpretrain":
        starts += ["head.fc.", "fc."]
    return tuple(
        key
        for key in keys
        if key.startswith(tuple(starts)) and key.rpartition(".")[2] in _CLASSIFIER_LEAVES
    )


def _prefixes(layout: str, keys: Iterable[str]) -> tuple[str, str, str]:
    """The prefixes of backbone, main head and auxiliary head in this checkpoint."""
    first = {key.partition(".")[0] for key in keys}
    backbone, head, auxiliary = layouts.PREFIXES.get(layout, ("backbone.", "\0", "\0"))
    if backbone and backbone[:-1] not in first:
        return "", "\0", "\0"  # a bare backbone: no key starts with a NUL
    return backbone, head, auxiliary


def analyse(record: Mapping[str, Any]) -> Conversion:
    """Converts a checkpoint and says what became of it.

    Args:
        record: A state dict of tensors or arrays, possibly wrapped.

    Returns:
        The conversion; see :func:`convert_state_dict` for the names.

    Raises:
        UserError: See :func:`convert_state_dict`.
    """
    raw = unwrap_state_dict(record)
    layout = _detect(raw)
    tensors = {key: as_tensor(key, value) for key, value in raw.items()}
    prefix, head_prefix, auxiliary_prefix = _prefixes(layout, tensors)
    left_out = _classifier_keys(tensors, layout, prefix)

    groups: dict[str, list[str]] = {prefix: [], head_prefix: [], auxiliary_prefix: []}
    necks, strangers = [], []
    # the bare backbone's prefix is empty: the longest prefix that fits is the part's
    order = sorted(groups, key=len, reverse=True)
    for key in tensors:
        if key in left_out:
            continue
        place = next((start for start in order if key.startswith(start)), None)
        if place is not None:
            groups[place].append(key[len(place) :])
        elif prefix == "backbone." and key.startswith("neck."):
            necks.append(key[5:])
        else:
            strangers.append(key)

    is_segmentor = bool(groups[head_prefix] or groups[auxiliary_prefix])
    baseline = layout == "mmseg-resnest" and any(
        key.startswith(("stem.", "conv1.weight")) for key in groups[prefix]
    )
    parts: list[tuple[str, str, _Part]] = []
    if baseline:
        # a ResNet of the stack: its names are its own
        part = _Part(groups[prefix])
        part.pass_through({key: tensors[prefix + key].ndim for key in groups[prefix]})
    else:
        # a bare backbone without a classifier may be one of ours, too
        foreign = layout != "published" or is_segmentor or bool(left_out)
        all_stages = layout != "mmseg-resnest" and foreign
        part = _place_backbone(layout, groups[prefix], all_stages)
    parts.append((prefix, "backbone." if is_segmentor else "", part))
    for start, ours in ((head_prefix, "decode_head."), (auxiliary_prefix, "auxiliary_head.")):
        if groups[start] or (is_segmentor and ours == "decode_head."):
            parts.append((start, ours, _place_head(layout, groups[start], tensors, start)))
            if not groups[start]:
                parts[-1][2].missing = ["*"]
    if necks:
        part = _Part(necks)
        part.pass_through({key: tensors["neck." + key].ndim for key in necks})
        parts.append(("neck.", "neck.", part))

    missing = [start + key for start, _, part in parts for key in part.missing]
    unknown = strangers + [start + key for start, _, part in parts for key in part.unknown]
    if missing or unknown:
        raise UserError("checkpoint", "", _complaint(layout, missing, unknown))

    names = {start + key: ours + name for start, ours, p in parts for key, name in p.keys.items()}
    ordered = {names[key]: value for key, value in tensors.items() if key in names}
    state_dict, added = _with_counters(ordered)
    return Conversion(layout, is_segmentor, state_dict, left_out, added)


def _complaint(layout: str, missing: list[str], unknown: list[str]) -> str:
    found = []
    if missing:
        found.append(f"{len(missing)} keys are missing: {list_keys(missing)}")
    if unknown:
        found.append(f"{len(unknown)} keys have no place: {list_keys(unknown)}")
    return (
        f"the checkpoint looks like layout {layout!r} but does not convert; {'; '.join(found)}. "
        "Check that the file is complete and holds a ResNeSt model"
    )


def _with_counters(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Adds the counters of batch norms that files from before PyTorch 0.4.1 and MXNet lack."""
    result: dict[str, Tensor] = {}
    added = []
    for key, value in state_dict.items():
        result[key] = value
        module, _, leaf = key.rpartition(".")
        counter = f"{module}.{_COUNTER}"
        if leaf == "running_var" and counter not in state_dict:
            result[counter] = torch.zeros((), dtype=torch.int64, device=value.device)
            added.append(counter)
    return result, tuple(added)


def convert_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turns a ResNeSt checkpoint of any known layout into the names of our models.

    Args:
        state_dict: Names to tensors or NumPy arrays, in the layout of a published backbone or
            segmentation model, timm, MMSegmentation, MMPretrain, GluonCV or our own; possibly
            under ``state_dict`` or ``model``, or with ``module.`` before every name.

    Returns:
        The tensors under our names: for a backbone without a prefix, for a segmentation model
        ``backbone.*``, ``decode_head.*``, ``auxiliary_head.*``. Types and values are those of the
        source, memory is shared with it where possible. Counters ``num_batches_tracked`` that
        it lacks are added as zeros; an ImageNet classifier is left out, which one log line says.

    Raises:
        UserError: The layout is unknown, keys have no place, or keys are missing (such as a
            convolution without its norm); the message lists them.
    """
    conversion = analyse(state_dict)
    if conversion.left_out:
        print_log(
            "left out of the checkpoint, a segmentation model has no ImageNet classifier: "
            + list_keys(conversion.left_out),
            logger="current",
            level=logging.INFO,
        )
    return conversion.state_dict


# --- the way back ---------------------------------------------------------------------------


def _rename_modules(keys: Iterable[str], table: Mapping[str, str]) -> dict[str, str]:
    names = {}
    for key in keys:
        module, _, leaf = key.rpartition(".")
        names[key] = f"{table.get(module, module)}.{leaf}"
    return names


def export_state_dict(state_dict: Mapping[str, Any], layout: str) -> dict[str, Tensor]:
    """Renames a state dict of one of our models for another code base.

    Args:
        state_dict: Our names: a backbone without a prefix or a segmentation model.
        layout: ``published`` (backbone, or a segmentation model with a published head), ``timm``
            (backbone only), ``openmmlab`` (MMSegmentation) or ``mmseg-resnest``.

    Returns:
        The same tensors under that layout's names. :func:`convert_state_dict` undoes it exactly.

    Raises:
        UserError: ``layout`` is unknown, ``state_dict`` is not one of ours, or the layout has no
            name for some of its keys; the message lists them.
    """
    if layout not in EXPORT_LAYOUTS:
        raise UserError(
            "checkpoint", "", f"layout {layout!r} is not one of {', '.join(EXPORT_LAYOUTS)}"
        )
    source = analyse(state_dict)
    ours = source.layout == "mmseg-resnest"
    if not ours and not (source.layout == "published" and not source.is_segmentor):
        raise UserError(
            "checkpoint",
            "",
            f"export_state_dict takes a state dict with our names, this one has layout "
            f"{source.layout!r}: pass it through convert_state_dict first",
        )
    if layout == "mmseg-resnest":
        return dict(source.state_dict)
    groups: dict[str, list[str]] = {"backbone.": [], "decode_head.": [], "auxiliary_head.": []}
    strangers = []
    for key in source.state_dict:
        start = f"{key.partition('.')[0]}." if source.is_segmentor else "backbone."
        if start in groups:
            groups[start].append(key[len(start) :] if source.is_segmentor else key)
        else:
            strangers.append(key)
    resnest = _is_resnest(groups["backbone."]) or "conv1.0.weight" in groups["backbone."]
    if layout == "timm" and source.is_segmentor:
        raise UserError(
            "checkpoint",
            "timm has no segmentation models",
            "export to 'published', 'openmmlab' or "
            "'mmseg-resnest', or give the backbone alone (the keys after 'backbone.')",
        )
    if not resnest and layout != "openmmlab":
        raise UserError(
            "checkpoint", "the backbone is not a ResNeSt", f"layout {layout!r} has no names for it"
        )

    if layout == "openmmlab":
        table = layouts.invert(layouts.OPENMMLAB_STEM) if resnest else {}
        renamed = _rename_modules(groups["backbone."], table)
        start = "backbone." if source.is_segmentor else ""
        names = {start + key: start + name for key, name in renamed.items()}
        return {names.get(key, key): value for key, value in source.state_dict.items()}

    # published or timm
    if not source.is_segmentor:
        return dict(source.state_dict)
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
        raise UserError(
            "checkpoint",
            f"layout 'published' has no name for {len(strangers)} keys",
            f"{list_keys(strangers)}; "
            "only the published FCN, PSP, EncNet and DeepLabV3 heads can be exported to it",
        )
    return {names[key]: value for key, value in source.state_dict.items()}
