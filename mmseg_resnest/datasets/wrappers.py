# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Wrappers of data sets: which sample of which data set theirs is, and which classes it holds."""

from __future__ import annotations

import bisect
import contextlib
import copy
import functools
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmengine.dataset
import mmseg.datasets.transforms
import numpy as np
from mmengine.dataset import BaseDataset

from ..errors import UserError
from ..io.parallel import in_parallel
from ..io.processes import cpu_count
from ..io.up_to_date import Record, fingerprint
from ..io.waiting_lock import wait_for_folder
from ..registry import DATASETS
from .transforms import LoadAnnotations
from .transforms.multilabel import PLANES, label_planes

#: Beside a data set, one for each way to read its label maps: which classes each of them holds.
CLASSES_FILE = ".mmseg_classes_{}.json"
# Options of ``LoadAnnotations`` that change no label.
_NO_MATTER = ("num_classes", "ignore_index", "cache_dir")
# Records that could not be written, for the next data set of this process.
_unwritten: dict[Path, Record] = {}

Classes = tuple[int, ...]


@DATASETS.register_module()
class ClassBalancedDataset(mmengine.dataset.ClassBalancedDataset):
    """Shows images of rare classes more often, as in LVIS (Gupta et al., arXiv 1908.03195).

    An image is repeated ceil(max(1, sqrt(oversample_thr / f))) times, f being the share of images
    that hold its rarest class. Which classes an image holds is read from its label map, after
    ``reduce_zero_label`` and ``label_map``, in all processes of the machine at once; the result is
    kept beside the data set and used again until a label map or how it is read changes.

    Args:
        dataset: The config of a data set with label maps, of a wrapper of such, or of one that
            has a ``get_cat_ids`` of its own.
        oversample_thr: The share of images below which a class is rare.
        lazy_init: As of MMEngine's.

    Raises:
        UserError: ``oversample_thr`` is not a positive number, the data set has no label maps, or
            one of them cannot be read.
    """

    def __init__(self, dataset: Any, oversample_thr: float, lazy_init: bool = False) -> None:
        number = isinstance(oversample_thr, int | float) and not isinstance(oversample_thr, bool)
        if not (number and 0 < oversample_thr < math.inf):
            reason = f"must be a positive number, not {oversample_thr!r}"
            raise UserError("config-value", "ClassBalancedDataset oversample_thr", reason)
        self._classes: list[Classes] = []
        super().__init__(dataset, oversample_thr, lazy_init)

    def _get_repeat_factors(self, dataset: Any, repeat_thr: float) -> list[float]:
        """How often each sample is to be shown, before rounding up."""
        self._classes = classes_of_samples(dataset)
        images = Counter(k for classes in self._classes for k in classes)
        total = len(self._classes)
        repeats = {k: max(1.0, math.sqrt(repeat_thr / (n / total))) for k, n in images.items()}
        return [max((repeats[k] for k in classes), default=1.0) for classes in self._classes]

    def get_cat_ids(self, idx: int) -> list[int]:
        """The classes that a sample's label map holds, in ascending order."""
        self.full_init()
        return list(self._classes[self.repeat_indices[idx]])


@DATASETS.register_module()
class ConcatDataset(mmengine.dataset.ConcatDataset):
    """MMEngine's ``ConcatDataset``.

    Raises:
        UserError: The data sets differ in classes, colours or another part of ``metainfo`` that
            ``ignore_keys`` does not name.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        lazy_init: bool = False,
        ignore_keys: str | list[str] | None = None,
    ) -> None:
        try:
            super().__init__(datasets, lazy_init, ignore_keys)
        except (KeyError, TypeError, ValueError) as error:
            built = getattr(self, "datasets", [])
            first = built[0].metainfo if len(built) == len(datasets) else {}
            for number, other in enumerate((one.metainfo for one in built[1:]), 2):
                for key in sorted({*first, *other} - {*self.ignore_keys}):
                    mine, theirs = repr(first.get(key)), repr(other.get(key))
                    if mine != theirs:
                        reason = f"{key} of data set {number} is {theirs:.200}, that of the first "
                        reason += f"{mine:.200}; make them equal, or take the first's with "
                        reason += f"ignore_keys=[{key!r}]"
                        raise UserError("classes", "ConcatDataset", reason) from error
            raise


def inside(dataset: Any, index: int) -> tuple[Any, int]:
    """The data set that makes a sample of a wrapper, and the sample's index in it.

    That is one with files, or a ``MultiImageMixDataset``, which changes the sample.
    """
    while True:
        if isinstance(dataset, mmengine.dataset.ConcatDataset):
            part = bisect.bisect_right(dataset.cumulative_sizes, index)
            index -= dataset.cumulative_sizes[part - 1] if part else 0
            dataset = dataset.datasets[part]
        elif isinstance(dataset, mmengine.dataset.RepeatDataset):
            dataset, index = dataset.dataset, index % len(dataset.dataset)
        elif isinstance(dataset, mmengine.dataset.ClassBalancedDataset):
            dataset, index = dataset.dataset, dataset.repeat_indices[index]
        elif hasattr(dataset, "dataset") and not hasattr(dataset, "pipeline"):
            dataset = dataset.dataset
        else:
            return dataset, index


def classes_of_samples(dataset: Any) -> list[Classes]:
    """The classes that each sample of a data set or wrapper holds, ignored labels left out.

    Raises:
        UserError: It has no label maps, or one of them cannot be read.
    """
    if isinstance(dataset, mmengine.dataset.ConcatDataset):
        return [classes for part in dataset.datasets for classes in classes_of_samples(part)]
    if isinstance(dataset, mmengine.dataset.RepeatDataset):
        return classes_of_samples(dataset.dataset) * dataset.times
    if isinstance(dataset, mmengine.dataset.ClassBalancedDataset):
        balanced = classes_of_samples(dataset.dataset)
        return [balanced[index] for index in dataset.repeat_indices]
    own = getattr(type(dataset), "get_cat_ids", BaseDataset.get_cat_ids)
    if own is not BaseDataset.get_cat_ids:
        return [tuple(sorted(set(dataset.get_cat_ids(i)))) for i in range(len(dataset))]
    if isinstance(dataset, BaseDataset):
        return _classes_of_files(dataset)
    if hasattr(dataset, "dataset"):  # MultiImageMixDataset and others with the same samples
        return classes_of_samples(dataset.dataset)
    reason = "has neither label maps nor get_cat_ids, so that its classes cannot be balanced"
    raise UserError("dataset", type(dataset).__name__, reason)


def _classes_of_files(dataset: BaseDataset) -> list[Classes]:
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    paths = [sample.get("seg_map_path") for sample in samples]
    if None in paths:
        reason = "has images without label maps, so that its classes cannot be balanced"
        raise UserError("dataset", type(dataset).__name__, reason)
    loaders = _loaders(dataset)
    numbers = len(dataset.metainfo["classes"]), getattr(dataset, "ignore_index", 255)
    settings = [[samples[0].get(key) for key in ("label_map", "reduce_zero_label")], *numbers]
    way = fingerprint([_options(loader) for loader in loaders], settings) if samples else ""
    count = functools.partial(_count, loaders, *numbers)
    root = dataset.data_root or dataset.data_prefix.get("seg_map_path") or ""
    if not os.path.isdir(root):  # files that are not local
        return [_numbers(count((path, one))[1]) for path, one in zip(paths, samples, strict=True)]
    folder = Path(root).absolute()
    file = folder / CLASSES_FILE.format(way[:8])
    jobs = {os.path.relpath(p, folder): one for p, one in zip(paths, samples, strict=True)}
    record = _unwritten.get(file) or Record(file, folder)
    if not all(record.is_current(name, way) for name in jobs):
        with wait_for_folder(folder):  # another process of the run may be counting
            record = _unwritten.get(file) or Record(file, folder)
            todo = [(n, one) for n, one in jobs.items() if not record.is_current(n, way)]
            found = in_parallel(count, todo, cpu_count(), "classes of images", "image")
            for name, classes in found:
                with contextlib.suppress(UserError):  # the record cannot be written
                    record.note(name, way, classes)
            try:
                record.save()
            except UserError:
                _unwritten[file] = record
    names = [os.path.relpath(path, folder) for path in paths]
    return [_numbers(record.outputs[name][3]) for name in names]


def _numbers(text: str) -> Classes:
    return tuple(map(int, text.split()))


def _options(loader: Any) -> dict[str, str]:
    """What a loading transform is and was made with, but for what changes no label."""
    options = {key: repr(value) for key, value in vars(loader).items() if key not in _NO_MATTER}
    return {**options, "": f"{type(loader).__module__}.{type(loader).__qualname__}"}


def _loaders(dataset: Any) -> Sequence[Any]:
    """The transforms of a pipeline that load label maps, not used by anything else."""
    steps = getattr(dataset.pipeline, "transforms", [])
    labels = [s for s in steps if isinstance(s, mmseg.datasets.transforms.LoadAnnotations)]
    loading = labels or [step for step in steps if type(step).__name__.startswith("Load")]
    return copy.deepcopy(loading) or [LoadAnnotations()]


def _count(
    loaders: Sequence[Any], num_classes: int, ignore_index: int, job: tuple[str, dict[str, Any]]
) -> tuple[str, str]:
    """The name and the classes of a label map, as text."""
    name, sample = job
    for loader in loaders:
        sample = loader(sample)
    if sample.get(PLANES) is not None:
        present = (label_planes(sample) == 1).any(axis=(1, 2))
        return name, " ".join(map(str, np.flatnonzero(present)))
    labels = np.asarray(sample["gt_seg_map"])
    found = np.flatnonzero(np.bincount(labels.reshape(-1).astype(np.int64)))
    return name, " ".join(str(k) for k in found if k < num_classes and k != ignore_index)
