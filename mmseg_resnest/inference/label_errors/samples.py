# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The labelled images of a config's split, once each, whatever wrappers are around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray

from ...datasets import build_dataset, leaf_datasets, loss_ignore_index
from ...datasets.pipelines import loads_labels, step_name
from ...engine.config import require
from ...engine.multilabel import is_multilabel
from ...engine.preflight import check_data
from ...errors import UserError
from ...io.memory import ran_out_of_memory
from ...io.text import error_words
from ...registry import TRANSFORMS, building

__all__ = ["LabelledSample", "labelled_samples"]


@dataclass(frozen=True)
class LabelledSample:
    """An image with its label map.

    Attributes:
        image: Its path.
        label: That of its label map.
        info: What the data set says of it.
        place: Which data set of the split it is of, and its index among all samples of that.
        loaders: The steps that load its labels.
    """

    image: str
    label: str
    info: Mapping[str, Any]
    place: tuple[int, int]
    loaders: tuple[Any, ...]

    def read_labels(self, num_classes: int, ignore_index: int) -> NDArray[np.integer]:
        """(H, W) labels as the run's pipeline loads them.

        Raises:
            UserError: They cannot be read, or hold a value that is neither a class nor ignored.
        """
        results: dict[str, Any] = {**self.info, "seg_fields": []}
        try:
            for loader in self.loaders:
                results = loader(results)
        except UserError:
            raise
        except Exception as error:  # whatever a loader of another package raises
            if ran_out_of_memory(error):
                raise
            said = f"cannot be read ({error_words(error)})"
            raise UserError("label", self.label, said) from error
        labels = np.asarray(results["gt_seg_map"])
        known = (labels >= 0) & (labels < num_classes)
        strange = labels[~known & (labels != ignore_index) & (labels != 255)]
        if strange.size:
            said = (
                f"holds {strange[0]}, which is neither one of the {num_classes} classes nor ignored"
            )
            raise UserError("label", self.label, said)
        return labels


def labelled_samples(cfg: Config, split: str) -> tuple[list[LabelledSample], int]:
    """The labelled images of a split (``train`` or ``val``), and the label that is ignored.

    Raises:
        UserError: The config has no such split, an image has no label map, or classes overlap.
    """
    name = f"{split}_dataloader"
    require(cfg, (name,), f"scoring the labels of the {split} images")
    if is_multilabel(cfg):
        said = (
            "takes labels of one class a pixel, and the classes of this model overlap "
            "(model.multilabel=True)"
        )
        raise UserError("model", "label-errors", said)
    check_data(cfg, (name,))
    samples: dict[tuple[str, str], LabelledSample] = {}
    default = dict(type="LoadAnnotations")
    with building(cfg.get("default_scope", "mmseg")):
        for number, leaf in enumerate(leaf_datasets(cfg[name].dataset)):
            dataset = build_dataset({**leaf, "indices": None})
            positions = _positions(leaf.get("indices"), len(dataset))
            steps = [s for s in leaf.get("pipeline") or () if loads_labels(step_name(s))]
            loaders = tuple(TRANSFORMS.build(dict(s)) for s in steps or [default])
            for position in positions:
                info = dataset.get_data_info(position)
                image, label = info["img_path"], info.get("seg_map_path")
                if label is None:
                    said = "has no label map to compare with a prediction"
                    raise UserError("dataset", image, said)
                sample = LabelledSample(image, label, info, (number, position), loaders)
                samples.setdefault((image, label), sample)
    return list(samples.values()), loss_ignore_index(cfg)


def _positions(indices: Any, total: int) -> list[int]:
    """Which samples MMEngine's data sets keep by their option ``indices``."""
    everything = list(range(total))
    if indices is None:
        return everything
    if isinstance(indices, int):
        return everything[:indices] if indices >= 0 else everything[indices:]
    return [everything[index] for index in indices]
