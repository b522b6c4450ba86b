# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Listing the samples of a data set: quickly, and once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.dataset import ConcatDataset
from mmseg.datasets import BaseSegDataset

from ..registry import DATASETS, type_name
from .layout import FolderCheck, listed_samples, sample_of

# What the check before training has listed, for the run that follows.
_listed: dict[str, list[dict[str, Any]]] = {}


def list_samples(dataset: BaseSegDataset) -> list[dict[str, Any]]:
    """What ``dataset.load_data_list()`` returns, without our own checks that each file exists.

    Folders are listed in a fifth of the stack's time.
    """
    if isinstance(dataset, FolderCheck):
        return dataset.list_samples()
    own = type(dataset).load_data_list is not BaseSegDataset.load_data_list
    images = dataset.data_prefix.get("img_path")
    suffix = dataset.img_suffix
    if own or dataset.backend_args or not isinstance(suffix, str):
        return dataset.load_data_list()
    if os.path.isfile(dataset.ann_file) and isinstance(images, str):
        return listed_samples(dataset)
    if dataset.ann_file:
        return dataset.load_data_list()
    if not isinstance(images, str) or not os.path.isdir(images):
        return dataset.load_data_list()
    labels = dataset.data_prefix.get("seg_map_path")
    images = os.path.join(images, "")
    return [
        sample_of(dataset, images + name, labels, name[: -len(suffix)])
        for name in sorted(_names(images, "", suffix))
    ]


def _names(folder: str, above: str, suffix: str) -> Iterator[str]:
    """Paths below a folder that end in a suffix, as MMEngine lists them."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_file():
                name = above + entry.name
                if name.endswith(suffix):
                    yield name
            elif os.path.isdir(entry.path):
                yield from _names(entry.path, f"{above}{entry.name}/", suffix)


def remember(dataset_cfg: Mapping[str, Any], samples: list[dict[str, Any]]) -> None:
    """Keep what :func:`list_samples` has listed for the next :func:`build_dataset`."""
    _listed[_key(dataset_cfg)] = samples


def forget_listed() -> None:
    """Forget what :func:`remember` has kept and no data set was built from, as after an error."""
    _listed.clear()


def build_dataset(dataset_cfg: Mapping[str, Any], keep: bool = False) -> Any:
    """Build a data set and list its samples, unless :func:`remember` has them.

    ``keep`` remembers them for the next time as well; the data set is used for a moment only, and
    holds them as they are.

    Raises:
        UserError: A file of one of the package's own data sets is missing.
    """
    key = _key(dataset_cfg)
    samples = _listed.get(key) if keep else _listed.pop(key, None)
    if samples is None and dataset_cfg.get("ann_file"):
        lazy = DATASETS.build({**dataset_cfg, "lazy_init": True, "pipeline": []})
        if isinstance(lazy, BaseSegDataset) and not isinstance(lazy, FolderCheck):
            samples = list_samples(lazy)
    if samples is None or dataset_cfg.get("lazy_init"):
        dataset = DATASETS.build(_with_lists(dataset_cfg))
    else:
        dataset = DATASETS.build({**dataset_cfg, "lazy_init": True})
        name = "list_samples" if isinstance(dataset, FolderCheck) else "load_data_list"
        setattr(dataset, name, lambda: list(samples))  # MMEngine empties it
        if keep:
            dataset.serialize_data = False  # which takes longer than a moment
        try:
            dataset.full_init()
        finally:
            delattr(dataset, name)
    if hasattr(dataset, "full_init"):
        dataset.full_init()
    return dataset


def _with_lists(dataset_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a wrapper whose data sets are built where they take a list of names."""

    def inner(cfg: Mapping[str, Any]) -> Any:
        return build_dataset(cfg) if cfg.get("ann_file") else _with_lists(cfg)

    result = dict(dataset_cfg)
    if isinstance(result.get("dataset"), Mapping):
        made = inner(result["dataset"])
        mixes = type_name(result.get("type")) == "MultiImageMixDataset"
        # Which takes configs and joined data sets only.
        result["dataset"] = ConcatDataset([made]) if mixes and not isinstance(made, dict) else made
    if isinstance(result.get("datasets"), Sequence):
        result["datasets"] = [inner(one) for one in result["datasets"]]
    return result


def _key(dataset_cfg: Mapping[str, Any]) -> str:
    return repr(sorted((k, v) for k, v in dataset_cfg.items() if k != "pipeline"))
