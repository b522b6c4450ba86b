# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What a config says about classes and ignored labels, and whether it agrees with itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcv.transforms import BaseTransform, Pad

from ...errors import UserError
from ...registry import DATASETS, METRICS, MODELS, TRANSFORMS, building, option_of
from ..label_map import dataset_metainfo
from ..pipelines import boxes_not_maps, preprocessor_of, step_name
from ..transforms import RandomLongEdgeCrop
from .rules import Problem


def leaf_datasets(dataset_cfg: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The data sets of a config that list files, those inside wrappers too."""
    inner = [*(dataset_cfg.get("datasets") or ()), dataset_cfg.get("dataset")]
    found = [one for one in inner if isinstance(one, Mapping)]
    for one in found:
        yield from leaf_datasets(one)
    if not found:
        yield dataset_cfg


def image_folders(dataset_cfg: Mapping[str, Any], scope: str) -> Iterator[Path]:
    """The folders in which the data sets of a config take every PNG or JPEG file for an image.

    A data set without folders, as a published model has it, takes none.
    """
    for leaf in leaf_datasets(dataset_cfg):
        if not leaf.get("data_root") and not (leaf.get("data_prefix") or {}).get("img_path"):
            continue
        try:
            with building(scope):
                lazy: Any = DATASETS.build({**leaf, "lazy_init": True, "pipeline": []})
        except Exception:  # whatever is wrong with it is said where its images are listed
            continue
        prefix, suffixes = getattr(lazy, "data_prefix", None) or {}, getattr(lazy, "img_suffix", "")
        suffixes = [suffixes] if isinstance(suffixes, str) else list(suffixes or ())
        images = prefix.get("img_path")
        listed = {".png", ".jpg"} & {str(one).lower() for one in suffixes}
        if listed and isinstance(images, str) and not getattr(lazy, "ann_file", ""):
            yield Path(images)


def numbers_of_classes(dataset_cfg: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The number of classes of each of :func:`leaf_datasets`; reads their files of class names.

    None stands where the config does not say it, or where the file of names cannot be read, which
    building the data set reports.
    """
    numbers: list[int | None] = []
    for leaf in leaf_datasets(dataset_cfg):
        try:
            classes = dataset_metainfo(leaf).get("classes")
        except UserError:
            classes = None
        # A text is the path of a file of names.
        numbers.append(len(classes) if classes and not isinstance(classes, str) else None)
    return tuple(numbers)


def guard_labels(
    dataset_cfg: Mapping[str, Any], numbers: Sequence[int | None], ignore_index: int
) -> None:
    """Let the package's ``LoadAnnotations`` refuse labels that are not classes.

    The pipelines of ``dataset_cfg`` are changed in place; ``numbers`` is what
    :func:`numbers_of_classes` returned for it.
    """
    for leaf, number in zip(leaf_datasets(dataset_cfg), numbers, strict=True):
        for step in leaf.get("pipeline", ()) if number is not None else ():
            if step_name(step) != "LoadAnnotations" or boxes_not_maps(step):
                continue
            if "num_classes" not in step:
                # By its full name: the config's default scope may be another one.
                step["type"] = f"{TRANSFORMS.scope}.LoadAnnotations"
                step["num_classes"] = number
                step["ignore_index"] = ignore_index


def _heads(model: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The heads of a model's config with their keys."""
    for name in ("decode_head", "auxiliary_head"):
        heads = (model or {}).get(name)
        if isinstance(heads, Mapping):
            yield f"model.{name}", heads
        elif isinstance(heads, Sequence) and not isinstance(heads, str):
            for i, head in enumerate(heads):
                if isinstance(head, Mapping):
                    yield f"model.{name}.{i}", head


def loss_ignore_index(cfg: Mapping[str, Any]) -> int:
    """The label that the main head's loss leaves out."""
    for _, head in _heads(cfg.get("model")):
        value = option_of(MODELS, head, "ignore_index")
        if value is not None:
            return int(value)
    return 255


def check_config(
    cfg: Mapping[str, Any], dataset_cfg: Mapping[str, Any], dataset: Any, split: str
) -> list[Problem]:
    """Compare the numbers of a config with one built data set of it and with one another."""
    problems = []
    classes = dataset.metainfo.get("classes") or ()
    kind = type(dataset).__name__
    ignored = loss_ignore_index(cfg)
    used: list[tuple[str, Any]] = []
    for key, head in _heads(cfg.get("model")):
        count = head.get("num_classes")
        if classes and count is not None and count != len(classes):
            what = f"is {count}, but {kind} has {len(classes)} classes"
            problems.append(Problem("num_classes", f"config key {key}.num_classes", what))
        used.append((f"config key {key}.ignore_index", option_of(MODELS, head, "ignore_index")))
    used.append((f"ignore_index of {kind} ({split})", getattr(dataset, "ignore_index", None)))
    if split != "train":
        evaluator = f"{'test' if split == 'test' else 'val'}_evaluator"
        metrics = cfg.get(evaluator)
        for metric in metrics if isinstance(metrics, list | tuple) else [metrics]:
            if isinstance(metric, Mapping):
                own = option_of(METRICS, metric, "ignore_index")
                used.append((f"config key {evaluator}.ignore_index", own))
    for key, own in used:
        if own is not None and own != ignored:
            problems.append(
                Problem("ignore_index", key, f"is {own}, but the main head's is {ignored}")
            )
    if 0 <= ignored < len(classes):
        key = "config key model.decode_head.ignore_index"
        what = f"is {ignored}, which is the class {classes[ignored]}"
        problems.append(Problem("ignore_index", key, what))
    fills = [("model.data_preprocessor.seg_pad_val", preprocessor_of(cfg).get("seg_pad_val"))]
    fills += _fills("train_dataloader", cfg.get("train_dataloader"))
    for key, fill in fills if split == "train" and classes else ():
        if fill is not None and fill != ignored and not 0 <= fill < len(classes):
            what = f"is {fill}, which is neither a class nor ignored ({ignored})"
            remedy = f"set it to {ignored}"
            problems.append(Problem("ignore_index", f"config key {key}", what, remedy=remedy))
    return problems + _check_default_reduce(dataset_cfg, dataset, split)


def _fills(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """The labels that transforms fill with, with their keys, in a part of a config."""
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping):
        return
    kind = node.get("type")
    kind = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
    if isinstance(kind, type) and issubclass(kind, BaseTransform):
        for option in ("seg_pad_val", "seg_fill_in"):
            yield f"{path}.{option}", option_of(TRANSFORMS, {**node, "type": kind}, option)
        if issubclass(kind, Pad | RandomLongEdgeCrop):
            fill = node.get("pad_val")
            yield f"{path}.pad_val.seg", fill.get("seg", 255) if isinstance(fill, Mapping) else 255
    for key, value in node.items():
        yield from _fills(f"{path}.{key}", value)


def _check_default_reduce(
    dataset_cfg: Mapping[str, Any], dataset: Any, split: str
) -> list[Problem]:
    """Whether the config contradicts what the data set's class says of its files."""
    asked = dataset_cfg.get("reduce_zero_label")
    own = option_of(DATASETS, {"type": type(dataset)}, "reduce_zero_label")
    # The default of BaseSegDataset says nothing about any files.
    declared = any(
        "__init__" in vars(base)
        and "reduce_zero_label" in inspect.signature(vars(base)["__init__"]).parameters
        for base in inspect.getmro(type(dataset))
        if base.__name__ != "BaseSegDataset"
    )
    if not declared or asked is None or bool(asked) == bool(own):
        return []
    name = type(dataset).__name__
    says = "0 is unlabelled and 1 is the first class" if own else "0 is the first class"
    what = f"is {bool(asked)}, but in the label files of {name} {says}"
    return [Problem("reduce_zero_label", f"reduce_zero_label of {name} ({split})", what, split)]
