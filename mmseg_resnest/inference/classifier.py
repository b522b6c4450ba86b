# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Classes of images: a trained classifier, and JSON files of what it says."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor
from tqdm import tqdm

from ..datasets.reader import ImageInput, ImageReader
from ..engine.checkpoint import load_weights
from ..engine.classification import check_head, classes_of, set_number_of_classes
from ..engine.config import require
from ..engine.model import build_model
from ..engine.preflight import check_checkpoint, check_device, check_writable
from ..errors import UserError
from ..io.atomic import atomic_write
from ..io.json_files import read_json
from ..io.text import printable
from ..models import fold_for_inference
from ..registry import building
from ..weights import load_checkpoint, resolve_checkpoint
from ..weights.hashes import hex_digests

__all__ = ["Classifier", "classify_files"]

_EVERY = 100  # images after which the file is written


class Classifier:
    """A classifier ready for use: ``model(image)`` returns a probability for each class.

    Args:
        cfg: The config of a classifier, see :func:`.load_classification`. The number of classes is
            that of the checkpoint.
        checkpoint: Its weights: a file, or a name of the catalogue.
        device: E.g. ``cpu`` or ``cuda:1``; None is the GPU if there is one.

    Attributes:
        classes: Names of the classes: those that the checkpoint was trained on, or their numbers.
        reader: How it reads images.
        device: Where it computes.
        checkpoint: The file of the weights.

    Raises:
        UserError: The device or the checkpoint is missing, or does not fit the config.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str | os.PathLike[str],
        device: str | torch.device | None = None,
    ) -> None:
        self.device = check_device(device)
        require(cfg, ("model", "test_dataloader"), "classifying images")
        check_head(cfg, cfg.filename)
        cfg = copy.deepcopy(cfg)
        check_checkpoint(checkpoint, "checkpoint")
        self.checkpoint = resolve_checkpoint(os.fspath(checkpoint))
        weights = load_checkpoint(self.checkpoint)
        last = next((weights[k] for k in weights if k.endswith("fc.weight")), None)
        if last is not None and last.ndim == 2:
            set_number_of_classes(cfg, len(last))
        model = build_model(cfg)
        load_weights(model, weights, name=checkpoint)
        self._network: Any = model.to(self.device).eval()
        count = cfg.model.head.num_classes
        names = classes_of(self.checkpoint) or ()
        self.classes = names if len(names) == count else tuple(map(str, range(count)))
        with building(cfg.get("default_scope", "mmseg_resnest")):
            self.reader = ImageReader.of(cfg.test_dataloader.dataset, "test_dataloader.dataset")

    def fold(self) -> None:
        """Make the network faster where it runs on a CPU; scores differ by rounding."""
        if self.device.type == "cpu":
            fold_for_inference(self._network)

    def __call__(self, image: ImageInput) -> Tensor:
        """The probabilities (classes,), float32, of one image.

        Raises:
            UserError: It cannot be read, or a step of the pipeline cannot work on it.
        """
        data = self.reader.prepare(self.reader.read(image))
        with torch.no_grad():
            (found,) = self._network.test_step(
                {"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}
            )
        scores: Tensor = found.pred_score.float().cpu()
        return scores

    def best(self, image: ImageInput, top: int = 5) -> list[dict[str, Any]]:
        """The likeliest classes of an image: ``{"class": name, "score": probability}``."""
        scores, labels = self(image).topk(min(top, len(self.classes)))
        pairs = zip(labels.tolist(), scores.tolist(), strict=True)
        return [{"class": self.classes[label], "score": round(score, 6)} for label, score in pairs]


def classify_files(
    model: Classifier, images: Sequence[str], top: int, out: str | os.PathLike[str] | None
) -> Iterator[tuple[str, list[dict[str, Any]] | UserError]]:
    """Classify files, yield the likeliest classes of each, and write them as JSON.

    The file has ``checkpoint`` (its SHA-256), ``classes`` and ``images``: the likeliest classes by
    path. It is written every hundred images and at the end, also when it is stopped; the same call
    goes on from there. An image that cannot be read yields its error.

    Raises:
        UserError: The file cannot be written, or is of other weights, options or images.
    """
    record: dict[str, Any] = {}
    if out is not None:
        check_writable(Path(out).absolute().parent, "--out")
        with open(model.checkpoint, "rb") as file:
            (digest,) = hex_digests(file, "sha256")
        record = {"checkpoint": digest, "top": top, "classes": list(model.classes), "images": {}}
        if Path(out).exists():
            record = _continued(record, out, images)
    done: dict[str, Any] = record.get("images", {})
    if sum(path not in done for path in images) > 4:
        model.fold()
    try:
        for number, path in enumerate(tqdm(images, desc="classifying", disable=None), 1):
            if path not in done:
                try:
                    done[path] = model.best(path, top)
                except UserError as error:
                    yield path, error
                    continue
            yield path, done[path]
            if out is not None and number % _EVERY == 0:
                atomic_write(out, json.dumps(record, indent=1) + "\n")
    finally:
        if out is not None:
            atomic_write(out, json.dumps(record, indent=1) + "\n")


def _continued(
    record: dict[str, Any], out: str | os.PathLike[str], images: Sequence[str]
) -> dict[str, Any]:
    """The record of an earlier call with the same model, options and images."""
    try:
        there = read_json(out, f"--out {out}")
    except UserError:
        there = None
    same = isinstance(there, dict) and {**there, "images": {}} == record
    if not same or not isinstance(there["images"], dict):
        message = "exists, and was not written with these weights and options; name another file"
        raise UserError("output-exists", f"--out {out}", message)
    if other := min(there["images"].keys() - set(images), default=None):
        message = f"holds other images, such as {printable(other)}; name another file"
        raise UserError("output-exists", f"--out {out}", message)
    return dict(there)
