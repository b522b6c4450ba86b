# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The check of a config's data: all of it on all cores, or a sample of it before training."""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmseg.datasets import BaseSegDataset
from numpy.typing import NDArray

from ...errors import UserError
from ...io.parallel import in_parallel
from ...io.processes import cpu_count
from ...io.text import printable
from ...registry import DATASETS
from ..layout import PREPARED
from ..listing import remember
from .batches import check_batches
from .config import leaf_datasets
from .labels import check_class_counts, check_label_use, class_counts
from .parts import Part, build_part
from .pixels import check_pixels
from .report import DataReport
from .rules import RULES, Problem
from .sample import SampleFacts, check_sample

SPLITS = ("train", "val", "test")
_LEAST = 8  # files that are looked at before training, however long that takes
_MORE = 5  # times as many files are looked at before training where a sample leaves doubts

_LEAVE_OUT = "label more images, or prepare the data without the class (prepare-data --ignore)"

_parts: list[Part] = []  # what the forked workers read from


def check_data(
    cfg: Mapping[str, Any],
    splits: Sequence[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
    ignore: Sequence[str] = (),
) -> DataReport:
    """Check every file of a config's data sets.

    Args:
        cfg: A checked config.
        splits: Of ``train``, ``val``, ``test``; default: those that the config has.
        workers: Processes; default: one for each core that this process may use.
        progress: Whether to show a bar on a terminal.
        ignore: Names of rules to leave out.

    Raises:
        UserError: A folder is missing, a split is not in the config, or a process was killed.
    """
    start = time.monotonic()
    asked = splits or [s for s in SPLITS if _dataset_of(cfg, s) is not None]
    if not asked:
        raise UserError("config-key", "the config", "has no train_, val_ or test_dataloader")
    for name in ignore:
        if name not in RULES:
            raise UserError("argument", f"--ignore {name}", f"is not one of {', '.join(RULES)}")
    workers = workers or cpu_count()
    problems: list[Problem] = []
    parts: list[Part] = []
    same: dict[str, str] = {}
    for split in asked:
        dataset_cfg = _dataset_of(cfg, split)
        if dataset_cfg is None:
            raise UserError("argument", f"--split {split}", f"the config has no {split}_dataloader")
        for leaf in leaf_datasets(dataset_cfg):
            part, found = build_part(cfg, leaf, split)
            twin = part and next((p for p in parts if _same_files(p, part)), None)
            if twin and twin.split != split:
                same[split] = twin.split
                continue
            problems += found
            if part is not None:
                parts.append(part)
    _read_all(parts, workers, progress)
    for part in parts:
        for facts in part.facts:
            problems += facts.problems
        problems += _label_use(part)
    problems += check_pixels(cfg, parts) + _duplicates(parts) + _class_use(parts)
    for split in asked:
        problems += check_batches(
            cfg, split, [p for p in parts if p.split == same.get(split, split)]
        )
    order = {rule: i for i, rule in enumerate(RULES)}
    unique = dict.fromkeys(p for p in problems if p.rule not in ignore)
    # Stable: within a rule the order of splits and files stays.
    ranked = sorted(unique, key=lambda p: (p.severity != "error", order[p.rule]))
    return DataReport(ranked, parts, same, time.monotonic() - start, workers)


def _dataset_of(cfg: Mapping[str, Any], split: str) -> Mapping[str, Any] | None:
    loader = cfg.get(f"{split}_dataloader")
    return loader.get("dataset") if loader else None


def _same_files(one: Part, other: Part) -> bool:
    def files(part: Part) -> list[tuple[Any, Any]]:
        return [(s["img_path"], s.get("seg_map_path")) for s in part.samples]

    # Training on the validation images is a mistake to report, not a repetition.
    return {one.split, other.split} == {"val", "test"} and files(one) == files(other)


def _check_one(place: tuple[int, int]) -> tuple[int, int, SampleFacts]:
    part = _parts[place[0]]
    return *place, check_sample(part.samples[place[1]], part.plan, part.split)


def _read_all(parts: list[Part], workers: int, progress: bool) -> None:
    """Fills in ``facts`` of every part."""
    global _parts
    places = [(p, i) for p, part in enumerate(parts) for i in range(len(part.samples))]
    for part in parts:
        part.facts = [SampleFacts()] * len(part.samples)
    _parts = parts
    try:
        with warnings.catch_warnings():  # the workers inherit it
            warnings.simplefilter("ignore")
            for p, i, facts in in_parallel(
                _check_one, places, workers, "checking", "image", progress
            ):
                parts[p].facts[i] = facts
    finally:
        _parts = []


def _label_use(part: Part) -> list[Problem]:
    complete = len(part.facts) == len(part.samples)
    # What prepare-data has made is no mask of 0 and 255: that refuses them.
    file = Path(part.samples[0].get("seg_map_path") or "")
    prepared = any((folder / PREPARED).is_dir() for folder in file.parents)
    return check_label_use(part.counts, part.plan, part.name, part.split, complete, prepared)


def _class_use(parts: Sequence[Part]) -> list[Problem]:
    """Classes that occur nowhere, or not in train; by lists of classes."""
    problems = []
    by_classes: dict[tuple[str, ...], list[Part]] = {}
    for part in parts:
        if part.plan.label is not None:
            by_classes.setdefault(tuple(part.classes), []).append(part)
    for classes, group in by_classes.items():
        pixels: dict[str, NDArray[np.int64]] = {}
        for part in group:
            counted = class_counts(part.counts, part.plan)[0]
            pixels[part.split] = pixels.get(part.split, 0) + counted
        remedy = _LEAVE_OUT if any(part.plan.planes for part in group) else ""
        problems += check_class_counts(pixels, classes, group[0].name, remedy)
    return problems


def _duplicates(parts: Sequence[Part]) -> list[Problem]:
    """Images whose pixels are equal."""
    problems = []
    first: dict[bytes, tuple[Part, int]] = {}
    for part in parts:
        for i, facts in enumerate(part.facts):
            if facts.image_hash is None:
                continue
            other, j = first.setdefault(facts.image_hash, (part, i))
            if (other, j) == (part, i):
                continue
            path, before = part.samples[i]["img_path"], other.samples[j]["img_path"]
            twice = os.path.realpath(path) == os.path.realpath(before)
            what = "is the same file as" if twice else "shows the same pixels as"
            what += f" {printable(before)} ({other.split})"
            rule = "leaked_image" if other.split != part.split else "duplicate_image"
            problems.append(Problem(rule, path, what, part.split))
            before_label, label = other.facts[j].label_hash, facts.label_hash
            if before_label and label and before_label != label:
                path = part.samples[i]["seg_map_path"]
                what = f"differs from {printable(other.samples[j]['seg_map_path'])}, though the "
                what += "images are the same"
                problems.append(Problem("conflicting_labels", path, what, part.split))
    return problems


def check_start(
    cfg: Mapping[str, Any],
    splits: Sequence[str] = ("train", "val"),
    files: int = 32,
    seconds: float = 2.0,
    limit: int = 3,
) -> None:
    """Refuse data whose labels contradict the config, judging by some of the files.

    Looks at ``files`` samples of each split, spread over the whole, but after the first eight for
    ``seconds`` at most, and reports up to ``limit`` problems.

    Raises:
        UserError: What :func:`check_data` would call an error, in its words.
    """
    errors: list[Problem] = []
    for split in splits:
        dataset_cfg = _dataset_of(cfg, split)
        for leaf in leaf_datasets(dataset_cfg) if dataset_cfg is not None else ():
            if leaf.get("backend_args") or not _lists_files(leaf):
                continue
            part, found = build_part(cfg, leaf, split)
            errors += found
            if part is None:
                continue
            if leaf is dataset_cfg:
                remember(leaf, part.samples)
            part.plan.with_pixels = False
            part.facts = _read_some(part, files, seconds)
            of_all = _label_use(part)
            if any(p.severity == "warning" for p in of_all):  # more files will tell
                part.facts = _read_some(part, _MORE * files, 2 * seconds)
                of_all = _label_use(part)
            for facts in part.facts:
                errors += facts.problems
            errors += of_all
    order = {"num_classes": 0, "reduce_zero_label": 1, "ignore_index": 2}
    ranked = sorted(dict.fromkeys(errors), key=lambda p: order.get(p.rule, 3))
    refused = [problem for problem in ranked if problem.severity == "error"]
    if refused:
        subject = printable(refused[0].file)
        lines = [problem.message for problem in refused[:limit]]
        lines[0] = lines[0].removeprefix(f"{subject}: ")
        if len(refused) > limit:
            lines.append(f"and {len(refused) - limit} more problems")
        lines.append("mmseg-resnest check-data CONFIG checks every file and lists what to fix")
        raise UserError("dataset", subject, "\n".join(lines))


def _lists_files(leaf: Mapping[str, Any]) -> bool:
    kind = leaf.get("type")
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    return isinstance(kind, type) and issubclass(kind, BaseSegDataset)


def _read_some(part: Part, files: int, seconds: float) -> list[SampleFacts]:
    count = min(files, len(part.samples))
    chosen = sorted({round(i) for i in np.linspace(0, len(part.samples) - 1, count)})
    # In mixed order, so that the time limit does not leave out the end of the list.
    random.Random(0).shuffle(chosen)
    facts = []
    deadline = time.monotonic() + seconds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in chosen:
            facts.append(check_sample(part.samples[i], part.plan, part.split))
            if len(facts) >= _LEAST and time.monotonic() > deadline:
                break
    return facts
