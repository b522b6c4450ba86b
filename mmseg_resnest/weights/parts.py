# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The parts of a model, backbone and heads, on the way from a checkpoint's names to ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from . import detector_names, layouts

COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var")


class Part:
    """A part of a checkpoint (backbone or head) on its way to our names, without its prefix."""

    def __init__(self, keys: Iterable[str], leaves: Mapping[str, str] | None = None) -> None:
        self._leaves = dict(leaves or {})
        self.source: dict[str, dict[str, str]] = {}  # module -> {our leaf: source key}
        self.keys: dict[str, str] = {}  # source key -> our key
        self.missing: list[str] = []  # keys that it must have, in the source's names
        self.unknown: list[str] = []  # source keys without a place
        for key in keys:
            module, _, leaf = key.rpartition(".")
            there = self.source.setdefault(module, {})
            name = self._leaves.get(leaf, leaf)
            if name in there:
                self.unknown.append(key)  # `gamma` beside `weight`: one of the two is too many
            else:
                there[name] = key

    def place(self, names: Mapping[str, str], expected: Mapping[str, str]) -> None:
        """Renames the part by ``names`` (source module to ours) and compares it with ``expected``.

        That holds the kind of each of our modules that must be there; no other may.
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
                allowed = (*norm_leaves, COUNTER) if has_statistics else norm_leaves
            for leaf, key in there.items():
                if leaf in allowed:
                    self.keys[key] = f"{module}.{leaf}"
                else:
                    self.unknown.append(key)

    def pass_through(self, shapes: Mapping[str, int]) -> None:
        """Keeps the names of a head that is built the same here as there, whatever it is.

        What is checked holds for every head of the stack: tensors that come in pairs do, and a
        ConvModule has a convolution with either a bias or a norm behind it. ``shapes`` are numbers
        of dimensions.
        """
        for module, there in self.source.items():
            parent, _, name = module.rpartition(".")
            siblings = [
                leaves["weight"]
                for other, leaves in self.source.items()
                if other.rpartition(".")[0] == parent and "weight" in leaves and other != module
            ]
            need: tuple[str, ...] = ()
            if any(leaf in there for leaf in (*_STATISTICS, COUNTER)):
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
    """``{source module: our module}`` where they differ; ``source``: see :class:`Part`."""
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
    if layout == "detectron2":
        plain = detector_names.is_plain(modules)
        return {module: detector_names.from_detectron2(module, plain) for module in modules}
    return {}


def _expected_backbone(ours: set[str], all_stages: bool, resnet: bool = False) -> dict[str, str]:
    """Every module (in our names) of the ResNeSt whose blocks ``ours`` shows, with its kind.

    A model of ours may be built without its last stages; files of others have all four.
    ``resnet``: of a ResNet without a deep stem instead.
    """
    expected: dict[str, str] = {"conv1": "conv", "bn1": "norm"} if resnet else {}
    if not resnet:
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
            plain = resnet or f"{start}.bn2" in ours or f"{start}.conv2" in ours
            parts = dict(layouts.PLAIN_BLOCK if plain else layouts.SPLIT_BLOCK)
            if index == 0:
                parts.update(layouts.PLAIN_SHORTCUT if resnet else layouts.SHORTCUT)
            expected.update({f"{start}.{name}": kind for name, kind in parts.items()})
    return expected


def place_backbone(layout: str, keys: list[str], all_stages: bool) -> Part:
    """A backbone in one of the known layouts; ``all_stages``: whether it must have all four."""
    part = Part(keys, layouts.GLUON_LEAVES if layout == "gluoncv" else None)
    names = _backbone_names(layout, part.source)
    ours = {names.get(module, module) for module in part.source}
    resnet = layout == "detectron2" and detector_names.is_plain(part.source)
    expected = _expected_backbone(ours, all_stages, resnet)
    if layout == "gluoncv":
        # so that a missing norm is called by GluonCV's name
        for module in expected:
            if module.endswith(".conv2.bn0"):
                names.setdefault(module[:-1], module)
    elif layout == "detectron2":
        for module in expected:
            names.setdefault(detector_names.to_detectron2(module, resnet), module)
    part.place(names, expected)
    return part


def place_head(layout: str, keys: list[str], tensors: Mapping[str, Tensor], prefix: str) -> Part:
    """A head, whose ``keys`` are without their ``prefix``."""
    if layout in ("published", "gluoncv"):
        part = Part(keys, layouts.GLUON_LEAVES if layout == "gluoncv" else None)
        table = layouts.foreign_head_table(layout, set(part.source))
        part.place({theirs: ours for theirs, (ours, _) in table.items()}, dict(table.values()))
    else:
        part = Part(keys)
        part.pass_through({key: tensors[prefix + key].ndim for key in keys})
    return part


def place_detector(layout: str, keys: list[str]) -> Part:
    """The FPN and the heads of a two-stage detector, all ``keys`` but the backbone's."""
    part = Part(keys)
    names: dict[str, str] = {}
    if layout == "detectron2":
        names = {module: detector_names.part_from_detectron2(module) for module in part.source}
    expected = detector_names.expected_parts({names.get(m, m) for m in part.source})
    if layout == "detectron2":
        for module in expected:  # so that what is missing is called by its name there
            names.setdefault(detector_names.part_to_detectron2(module), module)
    part.place(names, expected)
    return part
