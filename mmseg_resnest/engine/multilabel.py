# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Whether the parts of a config agree on classes that overlap, or on ones that exclude each other.

The labels of the two look alike to every part alone, which would compute something else of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..datasets.pipelines import loads_labels, pipelines, preprocessor_of, step_name
from ..errors import UserError, check_value
from ..evaluation import metric_configs
from ..io.bit_planes import IGNORED
from ..registry import type_name
from .config.kinds import DATALOADERS

_LOADER, _METRIC = "LoadMultilabel", "MultilabelMetric"
# Metrics of one class a pixel.
_EXCLUSIVE = ("SegmentationMetric", "IoUMetric", "CityscapesMetric", "CityscapesOfficialMetric")
_SWITCH = "set model.multilabel=True"


def is_multilabel(cfg: Mapping[str, Any]) -> bool:
    """Whether the classes of a config's model may overlap."""
    return bool((cfg.get("model") or {}).get("multilabel"))


def check_overlap(cfg: Mapping[str, Any]) -> None:
    """Check that model, label loaders, ignored values and metrics of a config agree.

    The subject of a UserError is the key to change.
    """
    several = is_multilabel(cfg)
    model = cfg.get("model") or {}
    for key, step in _label_steps(cfg):
        name = step_name(step)
        if several and name != _LOADER:
            said = (
                f"loads one class a pixel by {name}, but model.multilabel is True: load bit "
                f"planes by {_LOADER}"
            )
            raise UserError("config-conflict", key, said)
        if not several and name == _LOADER:
            said = f"loads classes that overlap by {_LOADER}: {_SWITCH}, or use LoadAnnotations"
            raise UserError("config-conflict", key, said)
        head = model.get("decode_head")
        classes = head.get("num_classes") if isinstance(head, Mapping) else None
        given = step.get("num_classes") if isinstance(step, Mapping) else None
        if several and None not in (classes, given) and classes != given:
            said = f"has {_LOADER} with num_classes={given}, but the head has {classes}"
            raise UserError("config-conflict", key, said)
    for name in ("val_evaluator", "test_evaluator"):
        for metric in metric_configs(cfg.get(name) or ()):
            kind = type_name(metric.get("type", "")) if isinstance(metric, Mapping) else ""
            if several and kind in _EXCLUSIVE:
                said = (
                    f"{kind} scores one class a pixel, but model.multilabel is True: use {_METRIC}"
                )
                raise UserError("config-conflict", f"config key {name}", said)
            if not several and kind == _METRIC:
                said = (
                    f"{_METRIC} scores classes that overlap: {_SWITCH}, or use SegmentationMetric"
                )
                raise UserError("config-conflict", f"config key {name}", said)
    if several:
        _check_ignored(cfg, model)


def _label_steps(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The steps that load labels, with the keys of their pipelines' data sets."""
    for loader in DATALOADERS:
        dataset = (cfg.get(loader) or {}).get("dataset")
        for _, steps in pipelines(dataset) if isinstance(dataset, Mapping) else ():
            for step in steps:
                if loads_labels(step_name(step)):
                    yield f"config key {loader}.dataset.pipeline", step


def _check_ignored(cfg: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """255 is what bit planes have for ignored, and 0 is a pixel of no class."""
    for name in ("decode_head", "auxiliary_head"):
        heads = model.get(name)
        for head in heads if isinstance(heads, list | tuple) else [heads]:
            value = (head or {}).get("ignore_index", IGNORED)
            key, wanted = f"model.{name}.ignore_index", f"{IGNORED} with model.multilabel=True"
            check_value(key, value, wanted, value == IGNORED)
    value = preprocessor_of(cfg).get("seg_pad_val", IGNORED)
    wanted = f"{IGNORED} (ignored) or 0 (no class) with model.multilabel=True"
    check_value("model.data_preprocessor.seg_pad_val", value, wanted, value in (0, IGNORED))
