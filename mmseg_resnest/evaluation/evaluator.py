# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Several metrics as one, whose scores are plain numbers with names of their own."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.evaluator import Evaluator as MMEngineEvaluator
from torch import Tensor

from ..registry import EVALUATOR, METRICS, type_name
from .results_file import NOT_SCORES

__all__ = [
    "Evaluator",
    "build_evaluator",
    "evaluation_result",
    "evaluation_scores",
    "ignored_label",
    "metric_configs",
    "score_name",
]


@EVALUATOR.register_module()
class Evaluator(MMEngineEvaluator):
    """MMEngine's evaluator, for metrics whose scores may have equal names.

    Where an earlier metric has given a score of that name, the metric's class is put before it:
    ``IoUMetric/mIoU``, then ``IoUMetric2/mIoU``. Numbers of any library become Python's.
    """

    def evaluate(self, size: int) -> dict[str, Any]:
        """The scores of all metrics by name.

        Args:
            size: Number of images of the data set.
        """
        scores: dict[str, Any] = {}
        for metric in self.metrics:
            for name, value in metric.evaluate(size).items():
                own, copies = name, 1
                while own in scores:
                    number = "" if copies == 1 else str(copies)
                    own, copies = f"{type(metric).__name__}{number}/{name}", copies + 1
                scores[own] = _plain(value)
        return scores


def _plain(value: Any) -> Any:
    """A number of any library as Python's; anything else as it is."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, np.floating) and not isinstance(value, float):
        return float(str(value))  # 44.14 of 32 bits, not 44.13999938964844
    return value.item() if isinstance(value, np.generic) else value


def build_evaluator(evaluator: Any) -> MMEngineEvaluator:
    """Build the evaluator of a config.

    Args:
        evaluator: The config of a metric, a list of them, or the config of an evaluator. Which of
            the two a dictionary is, its ``type`` says: MMEngine takes each with a key ``metrics``
            for an evaluator, but a metric may have an option of that name.
    """
    if isinstance(evaluator, MMEngineEvaluator):
        return evaluator
    if isinstance(evaluator, Mapping):
        kind = evaluator.get("type", Evaluator)
        found = METRICS.get(kind) if isinstance(kind, str) else kind
        if found is None or (isinstance(found, type) and issubclass(found, MMEngineEvaluator)):
            return EVALUATOR.build({"type": "Evaluator", **evaluator})
        evaluator = [evaluator]
    return Evaluator(list(evaluator) if isinstance(evaluator, list | tuple) else [evaluator])


def metric_configs(evaluator: Any) -> Iterator[Any]:
    """What configures the metrics of ``val_evaluator`` or ``test_evaluator``, one by one."""
    for one in evaluator if isinstance(evaluator, list | tuple) else [evaluator]:
        kind = type_name(one.get("type", "Evaluator")) if isinstance(one, Mapping) else ""
        if kind.endswith("Evaluator") and "metrics" in one:
            yield from metric_configs(one["metrics"] or ())
        else:
            yield one


def score_name(scores: Mapping[str, Any], name: str) -> str | None:
    """The full name of the score ``name``, which may lack its prefix; None if there is no such."""
    if name in scores:
        return name
    found = [key for key in scores if key.rsplit("/", 1)[-1] == name]
    return found[0] if len(found) == 1 else None


def ignored_label(evaluator: Any) -> int:
    """The label that the metrics of an evaluator leave out; 255 where none says."""
    metrics = getattr(evaluator, "metrics", ())
    found = (getattr(metric, "ignore_index", None) for metric in metrics)
    return next((label for label in found if isinstance(label, int)), 255)


def evaluation_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among what an evaluator returned."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, numbers.Real) and not isinstance(value, bool)
    }


def evaluation_result(evaluator: Any, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the results file of an evaluation.

    It has the ``last_result`` of the first metric that keeps one, with the counts of each class;
    every other score by its name; and under ``scores`` all scores.
    """
    results = (getattr(metric, "last_result", None) for metric in evaluator.metrics)
    found = next((result for result in results if result is not None), None)
    scores = evaluation_scores(metrics)
    others = {name: value for name, value in scores.items() if name not in NOT_SCORES}
    return {**others, **(found or {}), "scores": scores}
