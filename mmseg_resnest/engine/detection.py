# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What only the config of a detector has, checked before a run: COCO's files, classes and heads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..datasets import leaf_datasets
from ..datasets.coco_file import check_coco
from ..datasets.label_map import dataset_metainfo
from ..datasets.pipelines import loads_labels, step_name
from ..errors import UserError
from ..evaluation import metric_configs
from ..registry import building, type_name
from .classification import classes_of
from .facts import mappings

_COCO = "CocoDataset"


def check_detection(cfg: Config, loaders: Iterable[str]) -> None:
    """Check COCO's files of these data loaders, if any, and the heads' numbers of classes.

    Files that are not local (``backend_args``) are left alone.

    Raises:
        UserError: As :func:`.check_coco`; a head has another number of classes than the data set;
            or scores are computed from another JSON file than that of the data set.
    """
    for name in loaders:
        for leaf in leaf_datasets((cfg.get(name) or {}).get("dataset") or {}):
            if type_name(leaf.get("type")) != _COCO or leaf.get("backend_args"):
                continue
            classes, root = _classes(cfg, leaf), leaf.get("data_root") or ""
            if classes is not None:
                _check_heads(cfg, classes, name)
            file = Path(root, leaf.get("ann_file") or "")
            metrics = list(_coco_metrics(cfg, name))
            for metric in metrics:
                _check_same_file(metric["ann_file"], file, name)
            check_coco(
                file,
                Path(root, (leaf.get("data_prefix") or {}).get("img") or ""),
                classes,
                masks=_with_masks(leaf, metrics),
                labelled=not (metrics and all(metric.get("format_only") for metric in metrics)),
                scored=any(not metric.get("format_only") for metric in metrics),
            )


def check_trained_classes(cfg: Config, checkpoint: str | os.PathLike[str]) -> None:
    """UserError unless the test split has the classes of a checkpoint, in their order."""
    trained = classes_of(checkpoint)
    for leaf in leaf_datasets(cfg.test_dataloader.dataset) if trained else ():
        classes = _classes(cfg, leaf)
        if classes is None or tuple(classes) == trained:
            continue
        pairs = zip((*trained, "nothing"), (*classes, "nothing"), strict=False)
        theirs, ours = next((a, b) for a, b in pairs if a != b)
        message = f"are not those that {checkpoint} was trained on: {ours} in place of {theirs}; "
        message += "write metainfo.classes as they were"
        raise UserError("classes", "config key test_dataloader.dataset.metainfo.classes", message)


def _with_masks(leaf: Mapping[str, Any], metrics: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a data set's outlines are loaded, or scored."""
    loaded = [step for step in leaf.get("pipeline") or () if loads_labels(step_name(step))]
    return any(step.get("with_mask") for step in loaded) or any(
        "segm" in (metric.get("metric") or ()) for metric in metrics
    )


def _classes(cfg: Config, leaf: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes of a data set's config; None where they are in a file."""
    with building(cfg.get("default_scope", "mmseg_resnest")):
        named = dataset_metainfo(leaf).get("classes")
    return list(named) if isinstance(named, list | tuple) else None


def _check_heads(cfg: Config, classes: list[str], loader: str) -> None:
    """Check ``num_classes`` of the heads of boxes and masks."""
    for key, node in mappings(cfg.get("model"), "model"):
        number = node.get("num_classes", len(classes))
        of_head = any(part in key for part in ("bbox_head", "mask_head"))
        if of_head and number != len(classes):
            message = f"is {number}, and {loader}.dataset has {len(classes)} classes "
            message += f"({', '.join(classes[:4])}{', ...' * (len(classes) > 4)}); set it to "
            raise UserError("classes", f"config key {key}.num_classes", f"{message}{len(classes)}")


def _coco_metrics(cfg: Config, loader: str) -> Iterator[Mapping[str, Any]]:
    """The metrics beside a data loader that read a JSON file themselves."""
    evaluator = cfg.get(loader.replace("_dataloader", "_evaluator"))
    for metric in metric_configs(evaluator or ()) if loader != "train_dataloader" else ():
        if not isinstance(metric, Mapping) or type_name(metric.get("type")) != "CocoMetric":
            continue
        if metric.get("ann_file") and not metric.get("backend_args"):
            yield metric


def _check_same_file(scored: str, file: Path, loader: str) -> None:
    key = f"config key {loader.replace('_dataloader', '_evaluator')}.ann_file"
    if not os.path.isfile(scored):
        message = f"{scored} does not exist; name the file of {loader}.dataset, {file}"
        raise UserError("not-found", key, message)
    if not os.path.samefile(scored, file):
        message = (
            f"names {scored}, and {loader}.dataset reads {file}: the scores would be of other "
            "boxes; name the same file"
        )
        raise UserError("config-conflict", key, message)
