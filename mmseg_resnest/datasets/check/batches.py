# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Batches whose images differ in size: a model that is tested cannot stack them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...errors import UserError
from ...io.image_header import read_header
from ...registry import building, type_name
from ..listing import build_dataset
from ..pipelines import preprocessor_of
from .parts import Part
from .rules import Problem

Size = tuple[int, int]


def mixed_batch(
    batches: Iterable[Sequence[int]], size_of: Callable[[int], Size | None]
) -> Sequence[int] | None:
    """The first batch of indices whose images have more than one size; None counts as none."""
    for batch in batches:
        if len({size_of(index) for index in batch} - {None}) > 1:
            return batch
    return None


def image_sizes(dataset: Any) -> Callable[[int], Size | None]:
    """Tells width and height of the ``i``-th image of a data set from its file's header."""

    def size_of(index: int) -> Size | None:
        try:
            path = dataset.get_data_info(index)["img_path"]
            header = read_header(path, str(path))
        except (AttributeError, KeyError, OSError, TypeError, UserError):
            return None
        return None if header is None else (header.width, header.height)

    return size_of


def check_batches(cfg: Mapping[str, Any], split: str, parts: Sequence[Part]) -> list[Problem]:
    """Whether two images of different sizes come into one batch of validation or testing.

    ``parts`` are the checked data sets of the split, in their order.
    """
    loader = cfg.get(f"{split}_dataloader") or {}
    size = loader.get("batch_size")
    preprocessor = preprocessor_of(cfg)
    if split == "train" or not isinstance(size, int) or size < 2 or not preprocessor:
        return []
    if type_name(preprocessor.get("type")) != "SegDataPreProcessor":
        return []
    found = [
        (sample["img_path"], facts.size)
        for part in parts
        for sample, facts in zip(part.samples, part.facts, strict=True)
    ]
    batches = (range(i, min(i + size, len(found))) for i in range(0, len(found), size))
    mixed = mixed_batch(batches, lambda index: found[index][1])
    if mixed is None:
        return []
    one = next(i for i in mixed if found[i][1])
    other = next(i for i in mixed if found[i][1] not in (None, found[one][1]))
    try:  # the pipeline may make them equal
        with building(cfg.get("default_scope", "mmseg")):
            dataset = build_dataset(copy.deepcopy(loader["dataset"]))
            if len({dataset[i]["inputs"].shape[-2:] for i in (one, other)}) < 2:
                return []
    except Exception:  # what fails is another rule's
        return []
    texts = [f"{found[i][0]} ({'x'.join(map(str, found[i][1] or ()))})" for i in (one, other)]
    what = f"is {size}, but {texts[0]} and {texts[1]} come into one batch"
    return [Problem("mixed_sizes", f"config key {split}_dataloader.batch_size", what, split)]
