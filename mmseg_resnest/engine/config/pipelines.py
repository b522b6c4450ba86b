# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Pipelines of a config in which labels would not stay with their image, found without building."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mmcv.transforms
import mmengine.dataset
import mmseg.datasets.transforms as stack
from mmengine.dataset import BaseDataset
from mmseg.datasets import MultiImageMixDataset

from ...datasets.pipelines import loads_labels
from ...datasets.transforms.kinds import MOVING, REFUSED
from ...errors import UserError
from ...registry import type_name
from .numbers import is_positive, is_whole

Path = tuple[str, ...]
#: Options of wrappers that are numbers above 0, and whether whole ones.
_NUMBERS: tuple[tuple[type, str, bool], ...] = (
    (mmengine.dataset.ClassBalancedDataset, "oversample_thr", False),
    (mmengine.dataset.RepeatDataset, "times", True),
)


@dataclass
class _Before:
    """What the steps so far did; names of steps, or "" where none did it."""

    labels: str = ""  # loaded label maps
    moved: str = ""  # moved pixels
    drawn: str = ""  # moved them at random
    edges: str = ""  # made a map of edges
    packed: str = ""  # the key of the step that packed

    def add(self, other: _Before) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) or value)


class PipelineCheck:
    """Checks the data sets and pipelines of a config.

    ``find`` returns the class of a mapping with ``type`` at a key, or None.
    """

    def __init__(self, find: Callable[[Path, Mapping[str, Any]], Any]) -> None:
        self._find = find

    def check_dataset(self, path: Path, node: Any) -> _Before:
        """Check a data set and those inside it.

        Raises:
            UserError: A step is refused, or stands where labels would not follow the image; the
                subject is its key.
        """
        before = _Before()
        if not isinstance(node, Mapping):
            return before
        for i, inner in enumerate(node.get("datasets") or ()):
            before.add(self.check_dataset((*path, "datasets", str(i)), inner))
        before.add(self.check_dataset((*path, "dataset"), node.get("dataset")))
        steps = node.get("pipeline")
        key = f"config key {'.'.join(path)}"
        kind = self._find(path, node) if "type" in node else None
        if kind is mmengine.dataset.ClassBalancedDataset and not self._counts(path, node):
            reason = "does not know the classes of label maps; write "
            reason += "mmseg_resnest.ClassBalancedDataset"
            raise UserError("config-type", f"{key}.type", f"MMEngine's {kind.__name__} {reason}")
        _check_number(key, kind, node)
        mixes = isinstance(kind, type) and issubclass(kind, MultiImageMixDataset)
        if mixes:
            _check_skipped(f"{key}.skip_type_keys", node)
        if mixes and steps and before.packed:
            reason = "packs the images before MultiImageMixDataset can change them; move it to the "
            reason += "end of that one's pipeline"
            raise UserError("config-conflict", before.packed, reason)
        self.check_steps((*path, "pipeline"), steps, before, mixes)
        return before

    def _counts(self, path: Path, node: Mapping[str, Any]) -> bool:
        """Whether the data set inside has a way of its own to tell its classes."""
        inner = node.get("dataset")
        if not isinstance(inner, Mapping) or "type" not in inner:
            return True
        kind = self._find((*path, "dataset"), inner)
        own = getattr(kind, "get_cat_ids", BaseDataset.get_cat_ids)
        return own is not BaseDataset.get_cat_ids

    def check_steps(
        self, path: Path, steps: Any, before: _Before | None = None, mixes: bool = False
    ) -> None:
        """Check steps: one, a list, or lists in a list; raises as :meth:`check_dataset`.

        What they do is added to ``before``; ``mixes``: a step may ask for other images of the data
        set.
        """
        before = _Before() if before is None else before
        if isinstance(steps, list | tuple):
            for i, step in enumerate(steps):
                mixes_here = mixes and isinstance(step, Mapping)
                self.check_steps((*path, str(i)), step, before, mixes_here)
            return
        kind = self._find(path, steps) if isinstance(steps, Mapping) and "type" in steps else None
        if not isinstance(kind, type):
            return
        key, name = f"config key {'.'.join((*path, 'type'))}", kind.__name__
        if kind in REFUSED:
            raise UserError("config-type", key, f"{name} {REFUSED[kind]}")
        if hasattr(kind, "get_indices") and not mixes:
            reason = (
                f"{name} asks for other images, which only a step directly in the pipeline of "
                "MultiImageMixDataset gets"
            )
            raise UserError("config-conflict", key, reason)
        moves = issubclass(kind, MOVING)
        if moves and before.edges:
            reason = f"{name} leaves behind the edges that {before.edges} made; put it before that"
            raise UserError("config-conflict", key, reason)
        if issubclass(kind, stack.ConcatCDInput) and before.moved:
            reason = f"joins images of which {before.moved} has moved the first alone; put "
            raise UserError("config-conflict", key, f"{name} {reason}{name} before it")
        maps = issubclass(kind, mmcv.transforms.KeyMapper) and steps.get("mapping") is not None
        inside = _Before(labels=before.labels, edges=before.edges) if maps else before
        if not issubclass(kind, stack.Albu):
            self.check_steps((*path, "transforms"), steps.get("transforms"), inside)
        if maps:
            _check_mapping(key, kind, steps, inside)
            inside.moved = inside.drawn = ""  # what it maps moves together
            before.add(inside)
        before.moved = before.moved or (name if moves else "")
        at_random = moves and name.startswith("Random")
        before.drawn = before.drawn or (name if at_random else "")
        before.edges = before.edges or (name if issubclass(kind, stack.GenerateEdge) else "")
        before.labels = before.labels or (name if loads_labels(name) else "")
        before.packed = before.packed or (key if name.startswith("Pack") else "")


def _check_number(key: str, kind: Any, node: Mapping[str, Any]) -> None:
    """Refuse a number of a wrapper that makes no data set."""
    for wrapper, option, whole in _NUMBERS:
        if not (isinstance(kind, type) and issubclass(kind, wrapper) and option in node):
            continue
        value = node[option]
        if not (is_whole(value, 1) if whole else is_positive(value)):
            what = "a whole number of 1 or more" if whole else "a positive number"
            reason = f"must be {what}, not {value!r}"
            raise UserError("config-value", f"{key}.{option}", reason)


def _check_skipped(key: str, node: Mapping[str, Any]) -> None:
    """Whether the steps that a ``MultiImageMixDataset`` is to skip are steps of it."""
    steps = node.get("pipeline") or ()
    kinds = [step.get("type") for step in steps if isinstance(step, Mapping)]
    for name in node.get("skip_type_keys") or ():
        if name not in kinds:
            reason = f"names {name}; the steps are {', '.join(map(type_name, kinds))}"
            raise UserError("config-value", key, reason)


def _check_mapping(key: str, kind: type, step: Mapping[str, Any], inside: _Before) -> None:
    """Refuse a ``KeyMapper`` that moves an image without what belongs to it."""
    outputs = set(_texts(step.get("mapping") if not step.get("remapping") else step["remapping"]))
    if inside.labels and inside.moved and "img" in outputs and "gt_seg_map" not in outputs:
        reason = (
            f"{kind.__name__} gives back img, which {inside.moved} moves, without gt_seg_map;"
            " map gt_seg_map too"
        )
        raise UserError("config-conflict", key, reason)
    shares = issubclass(kind, mmcv.transforms.TransformBroadcaster)
    if shares and inside.drawn and not step.get("share_random_params"):
        reason = f"{inside.drawn} moves each image by other numbers; set share_random_params=True"
        raise UserError("config-conflict", key, reason)


def _texts(mapping: Any) -> Iterator[str]:
    if isinstance(mapping, Mapping):
        mapping = list(mapping.values())
    if isinstance(mapping, list | tuple):
        for item in mapping:
            yield from _texts(item)
    elif isinstance(mapping, str):
        yield mapping
