# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""An ONNX file in 8 bits: static quantisation with ranges seen on calibration images."""

from __future__ import annotations

import logging
import os
import tempfile
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
from ..engine.logs import only_errors
from ..errors import UserError
from ..evaluation import SegmentationScores, confusion_matrix, scores_from_confusion
from ..inference import Segmentor
from ..inference.runtimes import load_exported
from ..io.packages import needs_extra
from .check import images_of_test
from .files import atomic_path

__all__ = ["quantise", "score"]

# The pixels' weighted sums, which take the time. What joins them (attention, sums, resizing) stays
# in float32: it is cheap and loses most.
_OPERATIONS = ["Conv"]


class _Inputs:
    """The network's inputs, as ONNX Runtime's calibration asks for them."""

    def __init__(self, inputs: Iterator[dict[str, NDArray]]) -> None:
        self._inputs = inputs

    def get_next(self) -> dict[str, NDArray] | None:
        """The next input by name; None after the last."""
        return next(self._inputs, None)


def _inputs_of(
    model: Segmentor, name: str, images: Sequence[ImageInput]
) -> Iterator[dict[str, NDArray]]:
    network = cast(Any, model.model)
    run, seen = network.run, []

    def record(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs.numpy().copy())
        return run(inputs)

    network.run = record
    for image in tqdm(images, desc="calibrating", unit="image", disable=None, leave=False):
        model([image])
        yield from ({name: inputs} for inputs in seen)
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
    with needs_extra("deploy"):
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    if Path(target).suffix.lower() != ".onnx":
        raise UserError("argument", target, "only ONNX files are quantised: end the name in .onnx")
    if not images:
        raise UserError("argument-missing", "images", "give at least one image to calibrate on")
    model = load_exported(source)
    # It advises pre-processing, which is done here.
    quiet = only_errors(logging.getLogger())
    with tempfile.TemporaryDirectory() as folder, atomic_path(target) as part, quiet:
        prepared = os.path.join(folder, "prepared.onnx")
        # Its symbolic shape inference fails on free sizes and is not needed for convolutions.
        quant_pre_process(os.fspath(source), prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared)
        last = [n.name for n in graph.graph.node if n.op_type == "Conv"][-1:]
        inputs = _Inputs(_inputs_of(model, graph.graph.input[0].name, images))
        quantization.quantize_static(
            prepared,
            os.fspath(part),
            cast(Any, inputs),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_OPERATIONS,
            nodes_to_exclude=last if skip_last else [],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"ActivationSymmetric": False},
        )
        written = onnx.load(part)
        about = {p.key: p.value for p in onnx.load(source).metadata_props}
        del written.metadata_props[:]
        onnx.helper.set_model_props(written, about)
        onnx.save(written, part)
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
