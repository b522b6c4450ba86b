# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Cityscapes' official evaluation (``cityscapesscripts``) of the predictions of a run.

Its code is run as it is, on files: label ids predicted, ``*_gtFine_labelIds.png`` and
``*_gtFine_instanceIds.png``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import io
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from ..registry import METRICS
from .per_image import class_map
from .results import new_table, number

__all__ = ["CityscapesOfficialMetric", "label_ids", "official_scores", "official_table"]


def label_ids(train_ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Cityscapes' label ids (7 = road ...) of train ids (0 = road ...).

    255 becomes 0, "unlabeled"; any other value that is not a train id raises UserError.
    """
    from cityscapesscripts.helpers.labels import labels

    table = np.full(256, 255, np.uint8)
    table[255] = 0
    for label in labels:
        if 0 <= label.trainId < 255:
            table[label.trainId] = label.id
    values = np.asarray(train_ids)
    result: NDArray[np.uint8] = table[values]
    if (result == 255).any():
        value = values[result == 255].flat[0]
        raise UserError("classes", "the prediction", f"holds {value}, not a train id (0..18)")
    return result


class _OldNumPy:
    """NumPy with the functions that cityscapesscripts still asks for."""

    def __getattr__(self, name: str) -> Any:
        # Removed in NumPy 2.4; isin is its successor.
        return np.isin if name == "in1d" and not hasattr(np, name) else getattr(np, name)


def official_scores(
    predictions: Sequence[str | os.PathLike[str]],
    labels: Sequence[str | os.PathLike[str]],
    instances: bool = True,
) -> dict[str, Any]:
    """Run Cityscapes' official pixel-level evaluation on files.

    Args:
        predictions: PNGs of label ids.
        labels: Their ``*_gtFine_labelIds.png``.
        instances: Whether to compute iIoU, which reads ``*_gtFine_instanceIds.png`` beside them.

    Returns:
        What ``evaluateImgLists`` returns: ``classScores`` ... as fractions of 1.

    Raises:
        UserError: A file cannot be read or does not fit.
    """
    module = _official_module()
    # A copy: the module keeps its settings in one global object.
    args = copy.copy(module.args)
    args.evalInstLevelScore = instances
    args.evalPixelAccuracy = False
    args.JSONOutput = False
    args.quiet = True
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            result: dict[str, Any] = module.evaluateImgLists(
                [os.fspath(p) for p in predictions], [os.fspath(p) for p in labels], args
            )
    except SystemExit as error:  # how it reports every mistake
        lines = said.getvalue().strip().splitlines() or ["it gave no reason"]
        reason = lines[-1].removeprefix("ERROR: ")
        raise UserError("dataset", "official evaluation of Cityscapes", reason) from error
    return result


@functools.cache
def _official_module() -> Any:
    """A copy of the evaluation script's module that is ours alone."""
    name = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # It raises at import when this names no folder, though nothing is exported here.
    exported = os.environ.pop("CITYSCAPES_EXPORT_DIR", None)
    try:
        spec.loader.exec_module(module)
    finally:
        if exported is not None:
            os.environ["CITYSCAPES_EXPORT_DIR"] = exported
    if not hasattr(np, "in1d"):
        vars(module)["np"] = _OldNumPy()
    return module


def _official_label(seg_map_path: str | None, image: str) -> str:
    for suffix in ("_labelTrainIds.png", "_labelIds.png"):
        if seg_map_path and seg_map_path.endswith(suffix):
            path = seg_map_path.removesuffix(suffix) + "_labelIds.png"
            if os.path.isfile(path):
                return path
            raise UserError("not-found", path, "does not exist; the official evaluation reads it")
    raise UserError(
        "dataset",
        image,
        f"its label file is {seg_map_path}; the official evaluation needs "
        "*_gtFine_labelTrainIds.png, with *_gtFine_labelIds.png beside it",
    )


@METRICS.register_module()
class CityscapesOfficialMetric(BaseMetric):
    """Cityscapes' official scores: IoU and iIoU of classes and categories.

    Put it beside ``SegmentationMetric`` in the evaluator; its mIoU is the same number. The
    instance-weighted iIoU weighs each pixel of an instance by the class's mean instance size over
    the instance's own (Cordts et al., "The Cityscapes Dataset", CVPR 2016, section 4.2).

    Every process writes its predictions as label ids; the first evaluates all of them. Images
    that a sampler gave out twice are written, and count, once.

    Args:
        out_dir: Keeps the predicted label ids there; None: a temporary folder.
        instances: Whether to compute iIoU.
        collect_device: As MMEngine's metrics.
        prefix: Put before the names of the returned values; ``official`` by default.

    Raises:
        UserError: A label file is missing, or a prediction does not fit.
    """

    default_prefix = "official"

    def __init__(
        self,
        out_dir: str | os.PathLike[str] | None = None,
        instances: bool = True,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.instances = instances
        self.last_official: dict[str, Any] | None = None
        self._temporary: tempfile.TemporaryDirectory | None = None

    def _folder(self) -> Path:
        if self.out_dir is not None:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            return self.out_dir
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="cityscapes-")
        return Path(self._temporary.name)

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Write the label ids of samples with ``pred_sem_seg``, ``img_path``, ``seg_map_path``."""
        for sample in data_samples:
            if isinstance(sample, BaseDataElement):
                sample = sample.to_dict()
            image = str(sample.get("img_path"))
            truth = _official_label(sample.get("seg_map_path"), image)
            ids = label_ids(class_map(sample, "pred_sem_seg").cpu().numpy().astype(np.int64))
            name = os.path.basename(truth).replace("_gtFine_labelIds", "_pred_labelIds")
            path = self._folder() / name
            Image.fromarray(ids).save(path)
            self.results.append((str(path), truth))

    def evaluate(self, size: int) -> dict[str, float]:
        """Score the predictions of all processes.

        Args:
            size: Number of images of the data set.

        Returns:
            ``official/mIoU``, ``miIoU``, ``category_mIoU``, ``category_miIoU`` in percent, the
            same on every process. ``last_official`` holds the rest.
        """
        pairs: dict[str, str] = {}
        for part in all_gather_object(self.results):
            for path, truth in part:
                pairs.setdefault(truth, path)
        self.results.clear()
        message: list[Any] = [None]
        if is_main_process():
            try:
                message = [self.compute_metrics(sorted((p, t) for t, p in pairs.items()))]
            except UserError as error:  # raised on every process, so that none waits
                message = [error.args]
        broadcast_object_list(message)
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None
        if isinstance(message[0], tuple):
            raise UserError(*message[0])
        metrics: dict[str, float] = message[0]
        return {f"{self.prefix}/{k}" if self.prefix else k: v for k, v in metrics.items()}

    def compute_metrics(self, results: list[tuple[str, str]]) -> dict[str, float]:
        """Scores of pairs of files: prediction, label ids."""
        predictions, truths = [p for p, _ in results], [t for _, t in results]
        raw = official_scores(predictions, truths, self.instances)
        self.last_official = _summary(raw, len(results))
        logger = MMLogger.get_current_instance()
        logger.info("official evaluation of Cityscapes\n%s", official_table(self.last_official))
        keys = ("mIoU", "miIoU", "category_mIoU", "category_miIoU")
        return {k: float("nan") if (v := self.last_official[k]) is None else v for k in keys}


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * value


def _summary(raw: dict[str, Any], images: int) -> dict[str, Any]:
    def rows(scores: str, weighted: str) -> list[dict[str, Any]]:
        return [
            {"name": name, "IoU": _percent(value), "iIoU": _percent(raw[weighted][name])}
            for name, value in raw[scores].items()
            if not math.isnan(value)
        ]

    return {
        "mIoU": _percent(raw["averageScoreClasses"]),
        "miIoU": _percent(raw["averageScoreInstClasses"]),
        "category_mIoU": _percent(raw["averageScoreCategories"]),
        "category_miIoU": _percent(raw["averageScoreInstCategories"]),
        "images": images,
        "classes": rows("classScores", "classInstScores"),
        "categories": rows("categoryScores", "categoryInstScores"),
    }


def official_table(result: dict[str, Any]) -> str:
    """The official scores as aligned text, in percent."""
    table = new_table("class", "IoU", "iIoU")
    for key, prefix in (("classes", ""), ("categories", "category_")):
        for row in result[key]:
            table.add_row([row["name"], number(row["IoU"]), number(row["iIoU"])])
        table.add_divider()
        means = (number(result[f"{prefix}{name}"]) for name in ("mIoU", "miIoU"))
        table.add_row([f"mean of {key}", *means])
        if key == "classes":
            table.add_divider()
    return table.get_string()
