# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What turns predictions into numbers and pictures: the metric, label maps, curves."""

from .cityscapes import CityscapesOfficialMetric, official_scores, official_table
from .compare import compare_counts, comparison_table, other_scores_of, scores_table
from .confusion_matrix import SegmentationScores, confusion_matrix, scores_from_confusion
from .curves import plot_curves, read_scalars
from .evaluator import (
    Evaluator,
    build_evaluator,
    evaluation_result,
    evaluation_scores,
    metric_configs,
    score_name,
)
from .image_counts import ImageCounts
from .metric import MORE_METRICS, SegmentationMetric
from .multilabel import MultilabelMetric, average_precision
from .report import EXAMPLES_FILE, write_report
from .results import SCORES, class_table, other_scores, score, score_text, write_result
from .submission import FORMATS, Submission
from .visualize import default_palette, legend, overlay, palette_image, side_by_side

__all__ = [
    "EXAMPLES_FILE",
    "FORMATS",
    "MORE_METRICS",
    "SCORES",
    "CityscapesOfficialMetric",
    "Evaluator",
    "ImageCounts",
    "MultilabelMetric",
    "SegmentationMetric",
    "SegmentationScores",
    "Submission",
    "average_precision",
    "build_evaluator",
    "class_table",
    "compare_counts",
    "comparison_table",
    "confusion_matrix",
    "default_palette",
    "evaluation_result",
    "evaluation_scores",
    "legend",
    "metric_configs",
    "official_scores",
    "official_table",
    "other_scores",
    "overlay",
    "other_scores_of",
    "palette_image",
    "plot_curves",
    "read_scalars",
    "score",
    "score_name",
    "score_text",
    "scores_from_confusion",
    "scores_table",
    "side_by_side",
    "write_report",
    "write_result",
]
