# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Compares an exported model with the model, on images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from mmengine.config import Config

from ..datasets import build_dataset
from ..datasets.pipelines import loads_labels, pipelines, step_name
from ..datasets.reader import ImageInput, ImageReader
from ..engine.preflight import check_data
from ..errors import UserError
from ..inference import Segmentor
from ..inference.images import find_inputs
from ..registry import building
from ..runtimes.agreement import LABELS_EQUAL, SCORES_WITHIN, Agreement

__all__ = ["Agreement", "check_images", "compare", "require_agreement"]


def images_of_test(cfg: Config, labelled: bool = False) -> Any:
    """The data set of a config's test split.

    Args:
        cfg: The config.
        labelled: Whether its images need labels.

    Raises:
        UserError: It has no images, as in a published folder, or no labels.
    """
    check_data(cfg, ("test_dataloader",))
    key, config = "config key test_dataloader.dataset", cfg.test_dataloader.dataset
    with building(cfg.get("default_scope", "mmseg")):
        try:
            dataset = build_dataset(config)
        except OSError as error:
            message = "names no images; name the config and the checkpoint of the model's training"
            raise UserError("dataset", key, message) from error
    steps = [step_name(step) for _, some in pipelines(config) for step in some]
    labels = dataset.get_data_info(0).get("seg_map_path")
    if labelled and not (labels and any(map(loads_labels, steps))):
        raise UserError("dataset", key, "has no labels, which scores need; export without --int8")
    return dataset


def check_images(cfg: Config, source: str | None = None, most: int = 4) -> list[str]:
    """At most ``most`` images to compare models on, spread evenly; a UserError without any.

    ``source`` is a file, a folder or a pattern; None takes the config's test split.
    """
    if source is not None:
        with building(cfg.get("default_scope", "mmseg")):
            reader = ImageReader.of(cfg.test_dataloader.dataset, "test_dataloader.dataset")
        found = find_inputs(source, suffixes=reader.suffixes)[0]
    else:
        try:
            dataset = images_of_test(cfg)
        except UserError as error:
            message = f"{error.message}; or name images to check on with --images"
            raise UserError(error.code, error.subject, message) from error
        found = [os.fspath(dataset.get_data_info(i)["img_path"]) for i in range(len(dataset))]
    number = min(most, len(found))
    return [found[i * len(found) // number] for i in range(number)]


def compare(model: Segmentor, other: Segmentor, images: Iterable[ImageInput]) -> Agreement:
    """Segment images with a model and with what was exported from it.

    Each image is taken at its own size and, with its mirror image, as a batch of two at three
    quarters of it, so that a size that the file fixed would show. No image is a UserError.
    """
    models = model, other
    count = equal = total = 0
    labels_only = any(getattr(one.model, "gives_labels", False) for one in models)
    worst = None if labels_only else 0.0
    for image in images:
        count += 1
        loaded = model.reader.read(image)
        height, width = (max(32, edge * 3 // 4) for edge in loaded.size)
        small = loaded.pixels[:height, :width]
        pair = [model.reader.loaded(np.ascontiguousarray(one)) for one in (small, small[:, ::-1])]
        for batch in ([loaded], pair):
            for a, b in zip(model(batch), _of_exported(other, batch), strict=True):
                equal += int((a.labels == b.labels).sum())
                total += a.labels.size
        if worst is not None:
            scores = [next(one.score_bands(loaded, tile=0))[1] for one in models]
            worst = max(worst, float(np.abs(scores[0] - scores[1]).max()))
    if not count:
        raise UserError("argument-missing", "images", "give at least one to compare the models on")
    return Agreement(count, total, equal / total, worst)


def _of_exported(other: Segmentor, batch: list[Any]) -> list[Any]:
    """What the exported model gives; a UserError where its runtime cannot compute it."""
    try:
        return other(batch)
    except UserError as error:
        if error.code != "model":
            raise
        height, width = batch[0].size
        message = f"the exported network does not compute images of {width}x{height} "
        message += f"({error.message}); a "
        message += "part of this model fixes the sizes of its sample: share the config and the "
        message += "checkpoint, or a folder of mmseg-resnest publish-model, instead"
        raise UserError("export", error.subject, message) from error


def require_agreement(agreement: Agreement, what: str) -> None:
    """Raise a UserError, which says by how much, unless the models agree."""
    if not agreement.good:
        raise UserError(
            "export", what,
            f"the exported file differs from the model and was not written: {agreement}; at least "
            f"{100 * LABELS_EQUAL}% of the labels must be equal and probabilities within "
            f"{SCORES_WITHIN:g}",
        )  # fmt: skip
