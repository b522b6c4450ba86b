# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the labels of a whole split, and the config itself, say that no single file can."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...registry import DATASETS, METRICS, MODELS
from .files import ReadPlan, out_of_range
from .problems import Problem

__all__ = [
    "check_class_counts",
    "check_config_numbers",
    "check_label_use",
    "class_counts",
    "loss_ignore_index",
]

# Below this many files, "never occurs" says nothing.
_ENOUGH_FILES = 100
_HEADS = ("decode_head", "auxiliary_head")


def _heads(model: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The heads of a model's config with their keys."""
    for name in _HEADS:
        heads = (model or {}).get(name)
        if isinstance(heads, Mapping):
            yield f"model.{name}", heads
        elif isinstance(heads, Sequence) and not isinstance(heads, str):
            for i, head in enumerate(heads):
                if isinstance(head, Mapping):
                    yield f"model.{name}.{i}", head


def _default(registry: Any, node: Mapping[str, Any], option: str) -> Any:
    """The value of an option: the config's, else the default of the class it names."""
    if option in node:
        return node[option]
    kind = node.get("type")
    kind = registry.get(kind) if isinstance(kind, str) else kind
    for base in inspect.getmro(kind) if isinstance(kind, type) else ():
        if "__init__" in vars(base):
            parameter = inspect.signature(vars(base)["__init__"]).parameters.get(option)
            if parameter is not None and parameter.default is not parameter.empty:
                return parameter.default
    return None


def loss_ignore_index(cfg: Mapping[str, Any]) -> int:
    """The label that the main head's loss leaves out."""
    for _, head in _heads(cfg.get("model")):
        value = _default(MODELS, head, "ignore_index")
        if value is not None:
            return int(value)
    return 255


def check_config_numbers(
    cfg: Mapping[str, Any], dataset_cfg: Mapping[str, Any], dataset: Any, split: str
) -> list[Problem]:
    """Compare the numbers of a config with the data set and with one another.

    Args:
        cfg: The whole config.
        dataset_cfg: Of one data set.
        dataset: That data set, built.
        split: Its split.
    """
    problems = []
    classes = dataset.metainfo.get("classes") or ()
    kind = type(dataset).__name__
    ignored = loss_ignore_index(cfg)
    for key, head in _heads(cfg.get("model")):
        count = head.get("num_classes")
        if classes and count is not None and count != len(classes):
            effect = (
                "training stops with an index error or a CUDA assert"
                if count < len(classes)
                else "the model predicts classes that do not exist, and scoring it stops"
            )
            problems.append(
                Problem(
                    "num_classes",
                    f"config key {key}.num_classes",
                    f"is {count}, but {kind} has {len(classes)} classes",
                    effect,
                    f"set it to {len(classes)}, or the data set's metainfo.classes to the right "
                    "list",
                )
            )
        own = _default(MODELS, head, "ignore_index")
        if own is not None and own != ignored:
            problems.append(
                _disagrees(f"config key {key}.ignore_index", own, "the main head's", ignored)
            )
    if getattr(dataset, "ignore_index", ignored) != ignored:
        problems.append(
            _disagrees(
                f"ignore_index of {kind} ({split})", dataset.ignore_index, "the loss's", ignored
            )
        )
    evaluator = cfg.get("test_evaluator" if split == "test" else "val_evaluator")
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    for metric in metrics if split != "train" else ():
        if isinstance(metric, Mapping):
            own = _default(METRICS, metric, "ignore_index")
            if own is not None and own != ignored:
                key = f"config key {'test' if split == 'test' else 'val'}_evaluator.ignore_index"
                problems.append(_disagrees(key, own, "the loss's", ignored))
    if 0 <= ignored < len(classes):
        problems.append(
            Problem(
                "ignore_index",
                "config key model.decode_head.ignore_index",
                f"is {ignored}, which is the class {classes[ignored]}",
                "that class is never learnt nor scored",
                "set it to 255, or to a label that is no class",
            )
        )
    preprocessor = (cfg.get("model") or {}).get("data_preprocessor") or cfg.get("data_preprocessor")
    padding = (preprocessor or {}).get("seg_pad_val")
    unfit = padding is not None and padding != ignored and not 0 <= padding < len(classes)
    if split == "train" and classes and unfit:
        problems.append(
            Problem(
                "ignore_index",
                "config key model.data_preprocessor.seg_pad_val",
                f"is {padding}, which is neither a class nor ignored ({ignored})",
                "training stops at the first padded image",
                f"set it to {ignored}",
            )
        )
    problems += _check_default_reduce(dataset_cfg, dataset, split)
    return problems


def _disagrees(key: str, value: int, other: str, ignored: int) -> Problem:
    return Problem(
        "ignore_index",
        key,
        f"is {value}, but {other} is {ignored}",
        f"labels {value} and {ignored} are left out in one place and counted as classes in the "
        "other",
        f"set both to {ignored}, or all to the label that is ignored",
    )


def _check_default_reduce(
    dataset_cfg: Mapping[str, Any], dataset: Any, split: str
) -> list[Problem]:
    """Whether the config turns around what the data set's class says of its files."""
    asked = dataset_cfg.get("reduce_zero_label")
    own = _default(DATASETS, {"type": type(dataset)}, "reduce_zero_label")
    # BaseSegDataset's False is said of no files in particular.
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
    effect = (
        f"training ignores the class {dataset.metainfo['classes'][0]} and learns every other one "
        "as the one before it"
        if asked
        else "training learns 'unlabelled' as the first class and every class as the next"
    )
    return [
        Problem(
            "reduce_zero_label",
            f"reduce_zero_label of {name} ({split})",
            f"is {bool(asked)}, but in the label files of {name} {says}",
            effect,
            "take reduce_zero_label out of the config; if the files were converted, use a data "
            "set type of their own",
            split,
        )
    ]


def check_label_use(
    counts: Sequence[NDArray[np.int64]],
    plan: ReadPlan,
    name: str,
    split: str,
    whole: bool = True,
) -> list[Problem]:
    """Whether ``reduce_zero_label``, ``ignore_index`` and the classes fit the labels of a split.

    Args:
        counts: (256,) pixels of each value, one array a label file.
        plan: How they are read.
        name: Of the data set.
        split: Its split.
        whole: Whether the counts are those of all its label files.
    """
    if not counts:
        return []
    table = np.stack(counts) > 0
    files = len(table)
    present = np.flatnonzero(table.any(axis=0))
    number = plan.num_classes
    wrong = out_of_range(table.sum(axis=0, dtype=np.int64), plan)
    inside = set(present.tolist())
    reduced = plan.maps_zero_away
    identity = bool((plan.table[: number + 1] == np.arange(number + 1)).all())
    problems = []
    # Without a 0 nothing is unlabelled: then all the others must be there to tell.
    shifted = 0 in inside or set(range(1, number)) <= inside
    if wrong == [number] and shifted and identity:
        share = int(table[:, number].sum())
        low, says = (0, "0 seems to be unlabelled and ") if 0 in inside else (1, "")
        problems.append(
            Problem(
                "reduce_zero_label",
                f"reduce_zero_label of {name} ({split})",
                f"is False, but the labels run from {low} to {number} ({number} in {share} of "
                f"{files} files) with {number} classes: {says}1 the first class",
                "training stops with an index error or a CUDA assert",
                f"set reduce_zero_label=True; if {number} is the void label, give the data set a "
                f"label_map {{{number}: 255}}",
                split,
            )
        )
    elif len(wrong) == 1 and table[:, wrong[0]].sum() * 2 >= files:
        value = wrong[0]
        problems.append(
            Problem(
                "ignore_index",
                f"ignore_index of {name} ({split})",
                f"the loss ignores {plan.ignore_index}, but {int(table[:, value].sum())} of "
                f"{files} files hold {value}, which is no class: it seems to be the void label",
                "training stops with an index error or a CUDA assert",
                f"give the data set a label_map {{{value}: {plan.ignore_index}}}, or set "
                f"ignore_index={value} in the heads and the metric",
                split,
            )
        )
    if reduced and {0, 255} <= inside and number not in inside:
        problems.append(_needless_reduce(name, split, number, "both 0 and 255 occur", files))
    elif reduced and number not in inside and set(range(number)) <= inside:
        # Or the last class is rare. With two classes it comes to the same: one is trained on.
        sure = files >= _ENOUGH_FILES or (whole and number == 2 and split == "train")
        what = f"every label from 0 to {number - 1} occurs"
        severity = "" if sure else "warning"
        problems.append(_needless_reduce(name, split, number, what, files, severity))
    if inside == {0, 255} and not reduced and number > 1:
        problems.append(
            Problem(
                "ignore_index",
                f"label maps of {name} ({split})",
                "hold 0 and 255 only: they seem to be black and white masks, whose white is "
                f"ignored ({plan.ignore_index})",
                "training sees one class and learns to predict it everywhere",
                "save the masks with 0 and 1",
                split,
            )
        )
    return problems


def _needless_reduce(
    name: str, split: str, number: int, what: str, files: int, severity: str = ""
) -> Problem:
    return Problem(
        "reduce_zero_label",
        f"reduce_zero_label of {name} ({split})",
        f"is True, but in {files} files {what} and {number} never does: 0 seems to be a class",
        "training ignores the first class and learns every other one as the one before it",
        "set reduce_zero_label=False",
        split,
        severity,
    )


def class_counts(
    counts: Sequence[NDArray[np.int64]], plan: ReadPlan
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Pixels of each class, files that hold it, and ignored pixels, after loading.

    Returns:
        (C,) pixels, (C,) files, and the number of pixels that are no class.
    """
    number = plan.num_classes
    pixels = np.zeros(256, np.int64)
    files = np.zeros(256, np.int64)
    for one in counts:
        seen = np.zeros(256, np.int64)
        np.add.at(seen, plan.table, one)
        pixels += seen
        files += seen > 0
    if plan.ignore_index < number:
        rest = pixels[number:].sum() + pixels[plan.ignore_index]
    else:
        rest = pixels[number:].sum()
    return pixels[:number], files[:number], int(rest)


def check_class_counts(
    pixels: Mapping[str, NDArray[np.int64]], classes: Sequence[str], name: str
) -> list[Problem]:
    """Classes that occur in no split, or only in those that are not trained on.

    Args:
        pixels: (C,) pixels of each class, by split.
        classes: Their names.
        name: Of the data set.
    """
    if not pixels:
        return []
    never, untrained = [], []
    for k, label in enumerate(classes):
        holders = [split for split, counts in pixels.items() if counts[k]]
        if not holders:
            never.append(label)
        elif "train" in pixels and "train" not in holders:
            untrained.append((label, holders))
    problems = []
    splits = " and ".join(pixels)
    for label, holders in untrained:
        problems.append(
            Problem(
                "class_only_val",
                f"class {label} of {name}",
                f"occurs in {' and '.join(holders)} but not in train",
                "training cannot learn it; its IoU will be 0 and pull the mean down",
                "move images that show it to train, or take the class out",
            )
        )
    for label in never:
        problems.append(
            Problem(
                "class_never",
                f"class {label} of {name}",
                f"occurs in no label map of {splits}",
                "training cannot learn it; where it is predicted, its IoU is 0",
                "check the class list and the labels, or take the class out",
            )
        )
    return problems
