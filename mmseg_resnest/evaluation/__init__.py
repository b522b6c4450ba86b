# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What turns predictions into numbers and pictures: the metric, label maps, curves."""

from .cityscapes import CityscapesOfficialMetric, official_scores, official_table
from .compare import compare_counts, comparison_table
from .confusion_matrix import SegmentationScores, confusion_matrix, scores_from_confusion
from .curves import plot_curves, read_scalars
from .image_counts import ImageCounts
from .metric import SegmentationMetric
from .report import EXAMPLES_FILE, write_report
from .results import class_table, write_result
from .submission import FORMATS, Submission
from .visualize import default_palette, legend, overlay, palette_image, side_by_side

__all__ = [
    "EXAMPLES_FILE",
    "FORMATS",
    "CityscapesOfficialMetric",
    "ImageCounts",
    "SegmentationMetric",
    "SegmentationScores",
    "Submission",
    "class_table",
    "compare_counts",
    "comparison_table",
    "confusion_matrix",
    "default_palette",
    "legend",
    "official_scores",
    "official_table",
    "overlay",
    "palette_image",
    "plot_curves",
    "read_scalars",
    "scores_from_confusion",
    "side_by_side",
    "write_report",
    "write_result",
]
