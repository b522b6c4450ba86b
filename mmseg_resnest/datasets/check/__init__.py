# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checks a config's data before they cost a night."""

from .guard import guard_labels, leaf_datasets, numbers_of_classes
from .labels import loss_ignore_index
from .problems import KINDS, Problem
from .report import print_report, write_report
from .run import DataReport, check_data, check_start, write_fix_list

__all__ = [
    "KINDS",
    "DataReport",
    "Problem",
    "check_data",
    "check_start",
    "guard_labels",
    "leaf_datasets",
    "loss_ignore_index",
    "numbers_of_classes",
    "print_report",
    "write_fix_list",
    "write_report",
]
