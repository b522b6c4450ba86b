# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What turns predictions into numbers and pictures: the metric, label maps, curves."""

from .confusion_matrix import SegmentationScores, confusion_matrix, scores_from_confusion
from .curves import plot_curves, read_scalars
from .metric import SegmentationMetric, class_table, write_result
from .visualize import default_palette, legend, overlay, palette_image, side_by_side

__all__ = [
    "SegmentationMetric",
    "SegmentationScores",
    "class_table",
    "confusion_matrix",
    "default_palette",
    "legend",
    "overlay",
    "palette_image",
    "plot_curves",
    "read_scalars",
    "scores_from_confusion",
    "side_by_side",
    "write_result",
]
