# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The check of a config's data: all of it on all cores, or a sample of it before training."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmseg.datasets import BaseSegDataset
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ...errors import UserError
from ...io.atomic import atomic_open
from ...io.text import printable
from ...registry import DATASETS
from ..class_names import dataset_metainfo
from ..forking import opencv_on_one_thread
from ..layout import EmptyDataError, check_dataset_folders
from ..listing import list_samples, remember
from ..walk import walk
from .files import ReadPlan, SampleFacts, check_sample, make_plan
from .guard import leaf_datasets
from .labels import (
    check_class_counts,
    check_config_numbers,
    check_label_use,
    class_counts,
    loss_ignore_index,
)
from .problems import KINDS, Problem

__all__ = [
    "DataReport",
    "Part",
    "check_data",
    "check_start",
    "write_fix_list",
]

SPLITS = ("train", "val", "test")
_CHUNK = 16  # samples a task
_MORE = 5  # times as many files are looked at before training where a sample leaves doubts
_IMAGES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


@dataclass
class Part:
    """One data set of one split.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        name: Of the data set's class.
        classes: Names of its classes.
        palette: ``[r, g, b]`` for each class.
        samples: As ``BaseSegDataset`` lists them.
        plan: How they are read.
        facts: What the check found, one for each sample (after the check).
    """

    split: str
    name: str
    classes: list[str]
    palette: list[list[int]]
    samples: list[dict[str, Any]]
    plan: ReadPlan
    facts: list[SampleFacts] = field(default_factory=list)

    @property
    def counts(self) -> list[NDArray[np.int64]]:
        """(256,) pixels of each value, one for each label file that could be read."""
        return [f.raw_counts for f in self.facts if f.raw_counts is not None]


@dataclass
class DataReport:
    """The result of a check.

    Attributes:
        problems: Errors first, then in the order of kinds, splits and files.
        parts: The data sets that were checked.
        same: Splits whose files are those of another one, e.g. ``{"test": "val"}``.
        seconds: How long it took.
        workers: Processes that worked on it.
    """

    problems: list[Problem]
    parts: list[Part]
    same: dict[str, str]
    seconds: float
    workers: int

    @property
    def by_kind(self) -> dict[str, list[Problem]]:
        """The problems of each kind, graver kinds first."""
        found: dict[str, list[Problem]] = {}
        for problem in self.problems:
            found.setdefault(problem.kind, []).append(problem)
        return found

    def class_table(self) -> dict[str, dict[str, Any]]:
        """Class names, (C,) pixels and files, and ignored pixels, by split."""
        table: dict[str, dict[str, Any]] = {}
        for part in self.parts:
            pixels, files, rest = class_counts(part.counts, part.plan)
            entry = table.get(part.split)
            if entry is None or entry["classes"] != part.classes:
                table[part.split] = {
                    "classes": part.classes,
                    "pixels": pixels,
                    "files": files,
                    "ignored": rest,
                }
            else:
                entry["pixels"] = entry["pixels"] + pixels
                entry["files"] = entry["files"] + files
                entry["ignored"] += rest
        return table

    def sizes(self, split: str) -> Counter[tuple[int, int]]:
        """How many images have each (width, height)."""
        return Counter(
            f.size for p in self.parts if p.split == split for f in p.facts if f.size is not None
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        splits: dict[str, Any] = {}
        for split, entry in self.class_table().items():
            sizes = self.sizes(split)
            splits[split] = {
                "samples": sum(len(p.samples) for p in self.parts if p.split == split),
                "ignored_pixels": entry["ignored"],
                "classes": {
                    name: {"pixels": int(entry["pixels"][k]), "files": int(entry["files"][k])}
                    for k, name in enumerate(entry["classes"])
                },
                "sizes": {f"{w}x{h}": n for (w, h), n in sizes.most_common()},
            }
        return {
            "clean": not self.problems,
            "counts": {kind: len(found) for kind, found in self.by_kind.items()},
            "seconds": round(self.seconds, 3),
            "workers": self.workers,
            "same_files": self.same,
            "splits": splits,
            "problems": [p.as_dict() for p in self.problems],
        }


def _build_part(
    cfg: Mapping[str, Any], leaf: Mapping[str, Any], split: str
) -> tuple[Part | None, list[Problem]]:
    """Lists the samples of one data set, missing partners and all."""
    kind = leaf.get("type", "data set")
    name = kind if isinstance(kind, str) else kind.__name__
    if leaf.get("backend_args"):
        raise UserError(
            "dataset",
            f"{name} ({split})",
            "its files are not on this machine's disk (backend_args); only "
            "local files can be checked",
        )
    try:
        check_dataset_folders(leaf)
    except EmptyDataError as error:
        fix = "see data/README.md for how its folders must lie"
        return None, [_empty(name, split, error.text.split("; see ")[0], fix)]
    try:
        dataset = DATASETS.build({**leaf, "lazy_init": True, "pipeline": []})
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(
            "dataset",
            f"{name} ({split})",
            f"cannot be built from its config; {type(error).__name__}: {error}",
        ) from error
    if not isinstance(dataset, BaseSegDataset):
        raise UserError(
            "dataset", f"{name} ({split})", "is no BaseSegDataset; its files cannot be listed"
        )
    problems = check_config_numbers(cfg, leaf, dataset, split)
    try:
        samples = list_samples(dataset)
    except UserError as error:
        file, _, what = error.text.partition(": ")
        problems.append(
            Problem(
                "missing_image", file, what, "training does not start", "correct the files", split
            )
        )
        return None, problems
    if not samples:
        what = f"{name}: lists no sample"
        problems.append(_empty(name, split, what, "check ann_file, data_prefix and img_suffix"))
        return None, problems
    classes = [str(c) for c in dataset.metainfo.get("classes") or ()]
    if not classes:
        raise UserError(
            "classes", f"{name} ({split})", "names no classes; give it metainfo=dict(classes=(...))"
        )
    palette = [[int(v) for v in colour] for colour in dataset.metainfo["palette"]]
    own = "palette" in dataset_metainfo(leaf)
    plan = make_plan(
        leaf.get("pipeline", ()),
        dataset.label_map,
        dataset.reduce_zero_label,
        len(classes),
        loss_ignore_index(cfg),
        palette if own else (),
        with_labels=dataset.data_prefix.get("seg_map_path") is not None,
    )
    problems += _unlisted(dataset, samples, plan, split)
    return Part(split, name, classes, palette, samples, plan), problems


def _empty(name: str, split: str, what: str, fix: str) -> Problem:
    file, _, rest = what.partition(": ")
    return Problem(
        "empty_split",
        f"{name} ({split})",
        rest or file,
        "training does not start, or has nothing to validate on",
        fix,
        split,
    )


def _unlisted(
    dataset: Any, samples: Sequence[Mapping[str, Any]], plan: ReadPlan, split: str
) -> list[Problem]:
    """Label maps without an image, and images that the suffix leaves out."""
    if dataset.ann_file and not os.path.isdir(dataset.ann_file):
        return []  # a list of samples: other files are nobody's mistake
    problems = []
    labels = dataset.data_prefix.get("seg_map_path")
    if plan.label is not None and labels is not None:
        listed = {s["seg_map_path"] for s in samples if "seg_map_path" in s}
        for path in _unlisted_below(labels, listed):
            if path.endswith(dataset.seg_map_suffix):
                problems.append(
                    Problem(
                        "missing_image",
                        path,
                        "this label map has no image",
                        "training never sees it",
                        "add the image, or remove the label map",
                        split,
                        "warning",
                    )
                )
    images = dataset.data_prefix["img_path"]
    suffixes = dataset.img_suffix
    shown = " or ".join([suffixes] if isinstance(suffixes, str) else suffixes)
    for path in _unlisted_below(images, {s["img_path"] for s in samples}):
        image = os.path.splitext(path)[1].lower() in _IMAGES
        if image and os.path.islink(path) and not os.path.exists(path):
            problems.append(
                Problem(
                    "missing_image",
                    path,
                    "is a link to a file that is not there",
                    "training never sees it",
                    "bring the file back, or remove the link",
                    split,
                )
            )
            continue
        label = labels is not None and path.endswith(dataset.seg_map_suffix)
        if image and not (label and labels == images):
            problems.append(
                Problem(
                    "left_out",
                    path,
                    f"its name does not end in {shown}",
                    "training never sees it",
                    "rename or convert it, set img_suffix, or move it elsewhere",
                    split,
                )
            )
    return problems


def _unlisted_below(folder: str, listed: set[str]) -> Iterator[str]:
    """Paths below a folder, normalised, less those listed."""
    normalised: set[str] = set()
    for root, _, names in walk(folder):
        above = os.path.join(root, "")
        for name in names:
            path = above + name
            if path in listed:  # nearly all
                continue
            normalised = normalised or set(map(os.path.normpath, listed))
            path = os.path.normpath(path)
            if path not in normalised:
                yield path


# ------------------------------------------------------------------------------------------------
# Reading the files

_parts: list[Part] = []  # what the forked workers read from


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers for all
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """Nobody waits for a worker whose parent was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _read_chunk(part: int, start: int, stop: int) -> list[SampleFacts]:
    one = _parts[part]
    return [check_sample(s, one.plan, one.split) for s in one.samples[start:stop]]


def _read_all(parts: list[Part], workers: int, progress: bool) -> None:
    """Fills in ``facts`` of every part."""
    global _parts
    tasks = [
        (p, start, min(start + _CHUNK, len(part.samples)))
        for p, part in enumerate(parts)
        for start in range(0, len(part.samples), _CHUNK)
    ]
    total = sum(len(part.samples) for part in parts)
    for part in parts:
        part.facts = [SampleFacts()] * len(part.samples)
    _parts = parts
    bar = tqdm(
        total=total,
        desc="checking",
        unit="images",
        disable=None if progress else True,
        dynamic_ncols=True,
        file=os.fdopen(os.dup(2), "w") if _is_terminal() else sys.stderr,
    )

    def keep(task: tuple[int, int, int], facts: list[SampleFacts]) -> None:
        parts[task[0]].facts[task[1] : task[2]] = facts
        bar.update(len(facts))

    try:
        if workers <= 1 or len(tasks) == 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for task in tasks:
                    keep(task, _read_chunk(*task))
        else:
            _read_in_processes(tasks, min(workers, len(tasks)), keep)
    finally:
        bar.close()
        _parts = []


def _is_terminal() -> bool:
    # The bar writes to a copy: descriptor 2 is turned aside while a file is decoded.
    try:
        return os.isatty(2)
    except OSError:
        return False


@opencv_on_one_thread()
def _read_in_processes(tasks: list[tuple[int, int, int]], workers: int, keep: Any) -> None:
    # Forked, so that nothing is sent to the workers and nothing imported anew.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        futures: dict[Future[list[SampleFacts]], tuple[int, int, int]] = {
            pool.submit(_read_chunk, *task): task for task in tasks
        }
        for future in as_completed(futures):
            keep(futures[future], future.result())
    except BrokenProcessPool as error:
        raise UserError(
            "memory",
            "",
            "a process of the check was killed, most likely for want of memory, or by a file that "
            "crashes the decoder; use fewer --workers",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ------------------------------------------------------------------------------------------------
# The checks


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
        ignore: Kinds of problems to leave out.

    Returns:
        The report; its problems are empty for a clean data set.

    Raises:
        UserError: A folder is missing, a split is not in the config, or a process was killed.
    """
    start = time.monotonic()
    asked = splits or [s for s in SPLITS if _dataset_of(cfg, s) is not None]
    if not asked:
        raise UserError(
            "dataset", "the config has no train_, val_ or test_dataloader", "nothing to check"
        )
    unknown = [kind for kind in ignore if kind not in KINDS]
    if unknown:
        raise UserError(
            "dataset", f"there is no kind of problem {unknown[0]}; kinds", f"{', '.join(KINDS)}"
        )
    workers = workers or len(os.sched_getaffinity(0))
    problems: list[Problem] = []
    parts: list[Part] = []
    same: dict[str, str] = {}
    for split in asked:
        dataset_cfg = _dataset_of(cfg, split)
        if dataset_cfg is None:
            raise UserError("argument", f"--split {split}", f"the config has no {split}_dataloader")
        for leaf in leaf_datasets(dataset_cfg):
            part, found = _build_part(cfg, leaf, split)
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
    problems += _duplicates(parts)
    by_classes: dict[tuple[str, ...], dict[str, NDArray[np.int64]]] = {}
    for part in parts:
        if part.plan.label is None:
            continue
        pixels = by_classes.setdefault(tuple(part.classes), {})
        counted = class_counts(part.counts, part.plan)[0]
        pixels[part.split] = pixels.get(part.split, 0) + counted
    for classes, by_split in by_classes.items():
        name = next(p.name for p in parts if tuple(p.classes) == classes)
        problems += check_class_counts(by_split, classes, name)
    order = {kind: i for i, kind in enumerate(KINDS)}
    unique = dict.fromkeys(p for p in problems if p.kind not in ignore)
    # Stable: within a kind the order of splits and files stays.
    ranked = sorted(unique, key=lambda p: (p.severity != "error", order[p.kind]))
    return DataReport(ranked, parts, same, time.monotonic() - start, workers)


def _dataset_of(cfg: Mapping[str, Any], split: str) -> Mapping[str, Any] | None:
    loader = cfg.get(f"{split}_dataloader")
    return loader.get("dataset") if loader else None


def _same_files(one: Part, other: Part) -> bool:
    def files(part: Part) -> list[tuple[Any, Any]]:
        return [(s["img_path"], s.get("seg_map_path")) for s in part.samples]

    # Training on the validation images is a mistake to be told, not a repetition.
    return {one.split, other.split} == {"val", "test"} and files(one) == files(other)


def _duplicates(parts: Sequence[Part]) -> list[Problem]:
    """Images whose pixels are equal."""
    problems = []
    first: dict[bytes, tuple[Part, int]] = {}
    for part in parts:
        for i, facts in enumerate(part.facts):
            if facts.image_hash is None:
                continue
            if facts.image_hash not in first:
                first[facts.image_hash] = (part, i)
                continue
            other, j = first[facts.image_hash]
            path, before = part.samples[i]["img_path"], other.samples[j]["img_path"]
            twice = os.path.realpath(path) == os.path.realpath(before)
            what = "is the same file as" if twice else "shows the same pixels as"
            what += f" {printable(before)} ({other.split})"
            if other.split != part.split:
                problems.append(
                    Problem(
                        "leaked_image",
                        path,
                        what,
                        f"scores on {part.split} are too good: the model was trained on it"
                        if other.split == "train"
                        else f"{part.split} and {other.split} are not independent",
                        "take it out of one of the splits",
                        part.split,
                    )
                )
            else:
                problems.append(
                    Problem(
                        "duplicate_image",
                        path,
                        what,
                        "training sees it twice as often",
                        "remove one of them",
                        part.split,
                    )
                )
            before_label, label = other.facts[j].label_hash, facts.label_hash
            if before_label and label and before_label != label:
                problems.append(
                    Problem(
                        "conflicting_labels",
                        part.samples[i]["seg_map_path"],
                        f"differs from {printable(other.samples[j]['seg_map_path'])}, though the "
                        "images are the same",
                        "training learns two answers for one image",
                        "keep the right label map",
                        part.split,
                    )
                )
    return problems


def check_start(
    cfg: Mapping[str, Any],
    splits: Sequence[str] = ("train", "val"),
    files: int = 32,
    seconds: float = 2.0,
    limit: int = 3,
) -> None:
    """Refuse data whose labels contradict the config, judging by some of the files.

    Args:
        cfg: A checked config.
        splits: The splits to look at.
        files: How many samples of each, spread over the whole.
        seconds: Stop after this time for each split.
        limit: How many problems to tell.

    Raises:
        UserError: What :func:`check_data` would call an error, in its words.
    """
    errors: list[Problem] = []
    for split in splits:
        dataset_cfg = _dataset_of(cfg, split)
        if dataset_cfg is None:
            continue
        for leaf in leaf_datasets(dataset_cfg):
            if leaf.get("backend_args") or not _lists_files(leaf):
                continue
            part, found = _build_part(cfg, leaf, split)
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
    told = [p.message for p in sorted(dict.fromkeys(errors), key=lambda p: order.get(p.kind, 3))
            if p.severity == "error"]  # fmt: skip
    if told:
        more = [f"and {len(told) - limit} more like these"] if len(told) > limit else []
        hint = "mmseg-resnest check-data CONFIG checks every file and lists what to mend"
        raise UserError(
            "dataset", "", "\n".join(["the data do not fit:", *told[:limit], *more, hint])
        )


def _label_use(part: Part) -> list[Problem]:
    whole = len(part.facts) == len(part.samples)
    return check_label_use(part.counts, part.plan, part.name, part.split, whole)


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
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for i in chosen:
            facts.append(check_sample(part.samples[i], part.plan, part.split))
            if time.monotonic() > deadline:
                break
    return facts


def write_fix_list(report: DataReport, path: str | os.PathLike[str]) -> None:
    """Write what to mend, one ``kind<TAB>file<TAB>fix`` a line, whole or not at all.

    File names are written with the bytes they have on disk; line breaks and tabs in them are
    written as a backslash and a letter.

    Args:
        report: The report.
        path: The file.

    Raises:
        UserError: It cannot be written.
    """
    with atomic_open(path) as file:
        for problem in report.problems:
            name = problem.file.replace("\n", "\\n").replace("\t", "\\t")
            line = f"{problem.kind}\t{name}\t{printable(problem.fix)}\n"
            file.write(line.encode("utf-8", "surrogateescape"))
