# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Labels that are no class are refused with the name of their file, while training reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import UserError
from ...registry import TRANSFORMS
from ..class_names import dataset_metainfo

__all__ = ["guard_labels", "leaf_datasets", "numbers_of_classes"]


def leaf_datasets(dataset_cfg: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The data sets of a config that list files, those inside wrappers too."""
    inner = list(dataset_cfg.get("datasets", ()))
    if isinstance(dataset_cfg.get("dataset"), Mapping):
        inner.append(dataset_cfg["dataset"])
    if not inner:
        yield dataset_cfg
    for one in inner:
        yield from leaf_datasets(one)


def numbers_of_classes(dataset_cfg: Mapping[str, Any]) -> tuple[int | None, ...]:
    """How many classes the data sets of a loader have; reads their files of class names.

    Args:
        dataset_cfg: The ``dataset`` of a data loader.

    Returns:
        For each of :func:`leaf_datasets` the number; None where the config does not say it, or
        the file of names cannot be read, which building the data set reports.
    """
    numbers: list[int | None] = []
    for leaf in leaf_datasets(dataset_cfg):
        try:
            classes = dataset_metainfo(leaf).get("classes")
        except UserError:
            classes = None
        if not classes or isinstance(classes, str):  # a text is a file of names
            numbers.append(None)
        else:
            numbers.append(len(classes))
    return tuple(numbers)


def guard_labels(
    dataset_cfg: Mapping[str, Any], numbers: Sequence[int | None], ignore_index: int
) -> None:
    """Let the package's ``LoadAnnotations`` refuse labels that are no class, naming the file.

    Args:
        dataset_cfg: The ``dataset`` of a data loader; its pipelines are changed in place.
        numbers: What :func:`numbers_of_classes` returned for it.
        ignore_index: The label that the loss leaves out.
    """
    for leaf, number in zip(leaf_datasets(dataset_cfg), numbers, strict=True):
        for step in leaf.get("pipeline", ()) if number is not None else ():
            loader = step.get("type")
            name = loader if isinstance(loader, str) else getattr(loader, "__name__", "")
            if name.rsplit(".", 1)[-1] == "LoadAnnotations" and "num_classes" not in step:
                # By its full name: the config's default scope may be another one.
                step["type"] = f"{TRANSFORMS.scope}.LoadAnnotations"
                step["num_classes"] = number
                step["ignore_index"] = ignore_index
