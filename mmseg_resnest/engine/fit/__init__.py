# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""From a folder of labels to a config: facts, decisions with their reasons, measurements, text."""

from .budget import Budget, parse_budget
from .decide import Decision, Plan, Wishes, choose, decide, read_class_weights
from .facts import Facts, check_facts, collect_facts
from .measure import Measured, Step, measure, range_steps
from .steps import (
    FitFolder,
    Prepared,
    Start,
    check_labels,
    check_wishes,
    choose_start,
    make_plan,
    prepare_labels,
    write_config,
)
from .text import fit_config_text
from .weights import Origin, find_origin, write_start

__all__ = [
    "Budget", "Decision", "Facts", "FitFolder", "Measured", "Origin", "Plan", "Prepared", "Start",
    "Step", "Wishes", "check_facts", "check_labels", "check_wishes", "choose", "choose_start",
    "collect_facts", "decide", "find_origin", "fit_config_text", "make_plan", "measure",
    "parse_budget", "prepare_labels", "range_steps", "read_class_weights", "write_config",
    "write_start",
]  # fmt: skip
