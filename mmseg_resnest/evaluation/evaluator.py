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
    "metric_configs",
    "score_name",
]


@EVALUATOR.register_module()
class Evaluator(MMEngineEvaluator):
    """As MMEngine's, for metrics that give scores of the same names as well.

    A name that an earlier metric has given is put behind that of the metric: ``IoUMetric/mIoU``.
    Numbers of any library become Python's.
    """

    def evaluate(self, size: int) -> dict[str, Any]:
        """The scores of all metrics by name; ``size`` is the number of images of the data set."""
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
    """The evaluator of a config: a metric, several, or an evaluator's own config.

    MMEngine takes every dictionary with ``metrics`` for an evaluator's, but a metric may have an
    option of that name.
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
    """The name of a score, also where it has a prefix that ``name`` lacks; None for other words."""
    if name in scores:
        return name
    found = [key for key in scores if key.rsplit("/", 1)[-1] == name]
    return found[0] if len(found) == 1 else None


def evaluation_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What is a number among that which an evaluator returned."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, numbers.Real) and not isinstance(value, bool)
    }


def evaluation_result(evaluator: Any, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What is written of an evaluation.

    ``SegmentationMetric.last_result``, with the counts of each class, where there is one; every
    score by its name; and ``scores``, all of them.
    """
    results = (getattr(metric, "last_result", None) for metric in evaluator.metrics)
    found = next((result for result in results if result is not None), None)
    scores = evaluation_scores(metrics)
    others = {name: value for name, value in scores.items() if name not in NOT_SCORES}
    return {**others, **(found or {}), "scores": scores}
