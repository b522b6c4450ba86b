# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Hooks of a run: what it shows, saves and guards."""

from .checkpoint import CheckpointHook
from .console import ConsoleHook, describe_dataset, describe_model, duration, print_header
from .dropblock import DropBlockHook
from .examples import ExamplesHook
from .monitor import EarlyStoppingHook
from .nonfinite import NonFiniteHook
from .precise_bn import PreciseBNHook
from .predictions import SavePredictionsHook, TestProgressHook
from .results import ResultsHook

__all__ = [
    "CheckpointHook",
    "ConsoleHook",
    "DropBlockHook",
    "EarlyStoppingHook",
    "ExamplesHook",
    "NonFiniteHook",
    "PreciseBNHook",
    "ResultsHook",
    "SavePredictionsHook",
    "TestProgressHook",
    "describe_dataset",
    "describe_model",
    "duration",
    "print_header",
]
