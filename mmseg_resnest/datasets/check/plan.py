# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""How the samples of a data set are read: by the loading transforms of its pipeline."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mmseg.datasets.transforms
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import UserError
from ...registry import TRANSFORMS
from ..pipelines import split_loading
from ..reader import ImageReader
from ..transforms.loading import LoadAnnotations
from ..transforms.multilabel import LoadMultilabel

_StackLoadAnnotations = mmseg.datasets.transforms.LoadAnnotations


@dataclass
class ReadPlan:
    """How a data set's samples are read, and what their labels may be.

    Attributes:
        reader: Of the images, by the pipeline's transforms.
        label: The one that loads label maps; None: the samples have none.
        raw: ``label`` without any mapping; None for another transform than MMSegmentation's.
        table: (256,) uint8, the label that training sees for each value of a file.
        num_classes: Number of classes C of the data set.
        ignore_index: The label that the loss leaves out.
        palette: ``[r, g, b]`` for each class, or empty where the data set does not define one.
        with_pixels: Whether to hash the pixels (to find duplicates).
        planes: Number of classes that may overlap, as ``LoadMultilabel`` loads them.
        reduces_zero: Whether the data set or the transform says ``reduce_zero_label``.
    """

    reader: ImageReader
    label: Any
    raw: Any
    table: NDArray[np.uint8]
    num_classes: int
    ignore_index: int
    palette: Sequence[Sequence[int]] = ()
    with_pixels: bool = True
    planes: int | None = None
    reduces_zero: bool = False

    @property
    def maps_zero_away(self) -> bool:
        """Whether ``reduce_zero_label`` ignores 0 in the files; a ``label_map`` may, too."""
        return self.reduces_zero and bool(self.table[0] == 255 and self.table[1] == 0)

    def out_of_range(self, counts: NDArray[np.int64]) -> list[int]:
        """The values of label files that are neither a class nor ignored after loading.

        Args:
            counts: (256,), how often each value occurs.
        """
        values = np.flatnonzero(counts)
        seen = self.table[values].astype(int)
        wrong = (seen >= self.num_classes) & (seen != self.ignore_index)
        return [int(value) for value in values[wrong]]


def load(loader: Any, results: dict[str, Any]) -> Any:
    """What a loading transform makes of a sample, with the errors of the decoding library."""
    return getattr(loader, "load", loader)(results)


def make_plan(
    pipeline: Sequence[Any],
    label_map: Mapping[int, int] | None,
    reduce_zero_label: bool,
    num_classes: int,
    ignore_index: int = 255,
    palette: Sequence[Sequence[int]] = (),
    with_labels: bool = True,
) -> ReadPlan:
    """Take the loading transforms out of a config's pipeline."""
    label: Any = None
    for step in pipeline:
        kind = step.get("type") if isinstance(step, Mapping) else None
        kind = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
        if not isinstance(kind, type):
            continue
        if issubclass(kind, _StackLoadAnnotations):
            label = TRANSFORMS.build(dict(step)) if with_labels else None
    raw: Any = None
    reduces = False
    table = np.arange(256, dtype=np.uint8)
    if type(label) in (LoadAnnotations, _StackLoadAnnotations):
        raw = copy.copy(label)
        raw.reduce_zero_label = None
        reduces = bool(reduce_zero_label or label.reduce_zero_label)
        table = _table(label, label_map, reduce_zero_label)
    reader = ImageReader(split_loading(pipeline)[0] or pipeline[:1])
    planes = label.planes if isinstance(label, LoadMultilabel) else None
    return ReadPlan(
        reader, label, raw, table, num_classes, ignore_index, palette,
        planes=planes, reduces_zero=reduces,
    )  # fmt: skip


def _table(
    label: Any, label_map: Mapping[int, int] | None, reduce_zero_label: bool
) -> NDArray[np.uint8]:
    """What the transform makes of each of the 256 values, found with a file that has them all."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "values.png")
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
        results: dict[str, Any] = dict(seg_map_path=path, label_map=label_map, seg_fields=[])
        try:
            loaded = load(label, {**results, "reduce_zero_label": reduce_zero_label})
        except AssertionError as error:  # its options and the data set's
            said = f"does not go with the data set: {error}"
            raise UserError("config-conflict", f"step {type(label).__name__}", said) from error
        return np.asarray(loaded["gt_seg_map"], np.uint8).reshape(-1)
