# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""An ONNX file in 8 bits: static quantisation with ranges seen on calibration images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from numpy.typing import NDArray
from tqdm import tqdm

from ..datasets.reader import ImageInput
from ..errors import UserError
from ..evaluation import SegmentationScores, confusion_matrix, scores_from_confusion
from ..inference import Segmentor
from ..inference.runtimes import load_exported
from ..io.atomic import atomic_path
from ..runtimes.files import quantise_onnx
from .check import images_of_test

__all__ = ["quantise", "score"]


def _inputs_of(model: Segmentor, images: Sequence[ImageInput]) -> Iterator[NDArray]:
    network = cast(Any, model.model)
    run, seen = network.run, []

    def record(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs.numpy().copy())
        return run(inputs)

    network.run = record
    for image in tqdm(images, desc="calibrating", unit="image", disable=None, leave=False):
        model([image])
        yield from seen
        seen.clear()


def quantise(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    images: Sequence[ImageInput],
    skip_last: bool = True,
) -> Path:
    """Quantise an exported ONNX file to 8 bits; returns the path.

    Convolutions get signed weights, with a scale for each output channel, and unsigned inputs with
    the range seen on the images; written as QuantizeLinear and DequantizeLinear (QDQ).

    Args:
        source: ``.onnx`` in float32, of :func:`~mmseg_resnest.export.export_model`.
        target: ``.onnx`` to write.
        images: Dozens to hundreds like those that will be segmented, not the ones to evaluate on.
        skip_last: Leave the classifier in float32.

    Raises:
        UserError: There is no image, a package is missing, or a file cannot be read or written.
    """
    if Path(target).suffix.lower() != ".onnx":
        raise UserError("argument", target, "only ONNX files are quantised: end the name in .onnx")
    if not images:
        raise UserError("argument-missing", "images", "give at least one image to calibrate on")
    model = load_exported(source)
    with atomic_path(target) as part:
        quantise_onnx(source, part, _inputs_of(model, images), skip_last)
    return Path(target)


def require_one_class(model: Segmentor) -> None:
    """Raise UserError for a model whose classes may overlap, which :func:`score` cannot score."""
    if model.multilabel:
        message = "scores one class a pixel, and model.multilabel is True; export without it"
        raise UserError("config-conflict", "option --int8", message)


def score(models: Sequence[Segmentor], cfg: Config, most: int = 0) -> list[SegmentationScores]:
    """Scores of each model on the first ``most`` images of the config's test split; 0 is all."""
    require_one_class(models[0])
    dataset = images_of_test(cfg, labelled=True)
    number = min(most, len(dataset)) if most else len(dataset)
    classes = len(models[0].classes)
    matrices = [np.zeros((classes, classes), np.int64) for _ in models]
    for i in tqdm(range(number), desc="evaluating", unit="image", disable=None, leave=False):
        data = pseudo_collate([dataset[i]])
        sample = data["data_samples"][0]
        label = sample.gt_sem_seg.data[0].long()
        loaded = models[0].reader.read(sample.img_path)
        for model, matrix in zip(models, matrices, strict=True):
            predicted = torch.from_numpy(model([loaded])[0].labels.astype(np.int64))
            matrix += confusion_matrix(predicted, label, classes).numpy()
    return [scores_from_confusion(matrix) for matrix in matrices]
