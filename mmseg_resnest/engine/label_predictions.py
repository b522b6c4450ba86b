# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Predictions of labels alone, where nothing reads the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..evaluation import metric_configs
from ..models import EncoderDecoder
from ..registry import type_name


def predict_labels_only(model: nn.Module) -> None:
    """Let a segmentor predict labels without score maps of the image's size.

    A config that sets ``model.test_cfg.keep_scores`` decides for itself. A model of another class,
    such as test-time augmentation, which adds scores up, stays as it is.
    """
    if isinstance(model, EncoderDecoder):
        model.test_cfg.setdefault("keep_scores", False)


def metrics_read_labels_only(cfg: Mapping[str, Any]) -> bool:
    """Whether every metric of a config is one that is known to need no scores."""
    evaluators = (cfg.get(name) or () for name in ("val_evaluator", "test_evaluator"))
    return all(
        isinstance(metric, Mapping)
        and type_name(metric.get("type", "")) in ("SegmentationMetric", "IoUMetric")
        and "ECE" not in (metric.get("metrics") or ())  # which is of probabilities
        for evaluator in evaluators
        for metric in metric_configs(evaluator)
    )
