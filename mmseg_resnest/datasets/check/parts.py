# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The data sets of a config, and the files that they leave out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmseg.datasets import BaseSegDataset
from numpy.typing import NDArray

from ...errors import UserError
from ...io.image_files import IMAGE_SUFFIXES
from ...io.walk import walk
from ...registry import DATASETS, building
from ..label_map import dataset_metainfo
from ..layout import EmptyDataError, check_dataset_folders
from ..listing import list_samples
from .config import check_config, loss_ignore_index
from .plan import ReadPlan, make_plan
from .rules import Problem
from .sample import SampleFacts


@dataclass
class Part:
    """One data set of one split: its samples, how they are read, and the facts of each."""

    split: str
    name: str
    classes: list[str]
    palette: list[list[int]]
    samples: list[dict[str, Any]]
    plan: ReadPlan
    pipeline: Sequence[Any] = ()
    facts: list[SampleFacts] = field(default_factory=list)

    @property
    def counts(self) -> list[NDArray[Any]]:
        """(256,) int64 pixels of each value, one for each label file that could be read."""
        return [f.raw_counts for f in self.facts if f.raw_counts is not None]


def build_part(
    cfg: Mapping[str, Any], leaf: Mapping[str, Any], split: str
) -> tuple[Part | None, list[Problem]]:
    """List the samples of one data set; ``leaf`` is its config in ``cfg``.

    Returns:
        The data set, None where it has no samples, and what its config and folders show.

    Raises:
        UserError: A folder is missing, or the data set cannot be built or listed.
    """
    kind = leaf.get("type", "data set")
    name = f"{kind if isinstance(kind, str) else kind.__name__} ({split})"
    if leaf.get("backend_args"):
        raise UserError(
            "dataset", name, "its files are not local (backend_args), so they cannot be checked"
        )
    try:
        check_dataset_folders(leaf)
    except EmptyDataError as error:
        return None, [Problem("empty_split", name, error.text.partition("; ")[0], split)]
    try:
        dataset = DATASETS.build({**leaf, "lazy_init": True, "pipeline": []})
    except (AssertionError, TypeError, ValueError) as error:
        reason = f"cannot be built from its config ({type(error).__name__}: {error})"
        raise UserError("config-value", name, reason) from error
    if not isinstance(dataset, BaseSegDataset):
        message = "is not a BaseSegDataset of images and label maps, so its files cannot be "
        message += "checked; browse-data shows what training reads"
        raise UserError("dataset", name, message)
    problems = check_config(cfg, leaf, dataset, split)
    try:
        samples = list_samples(dataset)
    except UserError as error:
        problems.append(Problem("missing_image", error.subject or name, error.message, split))
        return None, problems
    if not samples:
        problems.append(Problem("empty_split", name, "lists no sample", split))
        return None, problems
    classes = [str(c) for c in dataset.metainfo.get("classes") or ()]
    if not classes:
        reason = "has no class names; give it metainfo=dict(classes=(...)) or classes_file"
        raise UserError("classes", name, reason)
    palette = [[int(v) for v in colour] for colour in dataset.metainfo["palette"]]
    with building(cfg.get("default_scope", "mmseg")):
        plan = make_plan(
            leaf.get("pipeline", ()),
            dataset.label_map,
            dataset.reduce_zero_label,
            len(classes),
            loss_ignore_index(cfg),
            palette if "palette" in dataset_metainfo(leaf) else (),
            with_labels=dataset.data_prefix.get("seg_map_path") is not None,
        )
    problems += _unlisted(dataset, samples, plan, split)
    named = name.rpartition(" (")[0]
    steps = leaf.get("pipeline", ())
    return Part(split, named, classes, palette, samples, plan, steps), problems


def _unlisted(
    dataset: Any, samples: Sequence[Mapping[str, Any]], plan: ReadPlan, split: str
) -> list[Problem]:
    """Label maps without an image, and images that the suffix leaves out."""
    if dataset.ann_file and not os.path.isdir(dataset.ann_file):
        return []  # the list of samples leaves files out on purpose
    problems = []
    images, labels = dataset.data_prefix["img_path"], dataset.data_prefix.get("seg_map_path")
    if plan.label is not None and labels is not None:
        listed = {s["seg_map_path"] for s in samples if "seg_map_path" in s}
        problems += [
            Problem("missing_image", path, "this label map has no image", split, "warning")
            for path in _unlisted_below(labels, listed)
            if path.endswith(dataset.seg_map_suffix)
        ]
    suffixes = dataset.img_suffix
    suffixes = " or ".join([suffixes] if isinstance(suffixes, str) else suffixes)
    for path in _unlisted_below(images, {s["img_path"] for s in samples}):
        if os.path.splitext(path)[1].lower() not in IMAGE_SUFFIXES:
            continue
        if os.path.islink(path) and not os.path.exists(path):
            what = "is a link to a file that does not exist"
            problems.append(Problem("missing_image", path, what, split))
        elif labels != images or not path.endswith(dataset.seg_map_suffix):
            what = f"its name does not end in {suffixes}"
            problems.append(Problem("left_out", path, what, split))
    return problems


def _unlisted_below(folder: str, listed: set[str]) -> Iterator[str]:
    """Paths below a folder, normalised, less those listed and hidden ones."""
    normalised: set[str] = set()
    for root, folders, names in walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        above = os.path.join(root, "")
        for name in names:
            if name[0] == "." or above + name in listed:  # nearly all
                continue
            normalised = normalised or set(map(os.path.normpath, listed))
            path = os.path.normpath(above + name)
            if path not in normalised:
                yield path
