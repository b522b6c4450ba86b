# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checks a config's data before they cost a night."""

from .batches import image_sizes, mixed_batch
from .config import (
    guard_labels,
    image_folders,
    leaf_datasets,
    loss_ignore_index,
    numbers_of_classes,
)
from .page import write_report
from .report import DataReport, print_report, write_fix_list
from .rules import RULES, Problem, Rule
from .run import check_data, check_start

__all__ = [
    "RULES",
    "DataReport",
    "Problem",
    "Rule",
    "check_data",
    "check_start",
    "guard_labels",
    "image_folders",
    "image_sizes",
    "leaf_datasets",
    "loss_ignore_index",
    "mixed_batch",
    "numbers_of_classes",
    "print_report",
    "write_fix_list",
    "write_report",
]
