# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checkpoint files: reading them safely and turning their names into ours."""

from .catalogue import Entry, catalogue, find
from .convert import (
    EXPORT_LAYOUTS,
    Conversion,
    analyse,
    convert_state_dict,
    detect_layout,
    export_state_dict,
)
from .load import load_backbone, load_checkpoint, load_into, load_training_checkpoint
from .save import save_state_dict

__all__ = [
    "EXPORT_LAYOUTS",
    "Conversion",
    "Entry",
    "analyse",
    "catalogue",
    "convert_state_dict",
    "detect_layout",
    "export_state_dict",
    "find",
    "load_backbone",
    "load_checkpoint",
    "load_into",
    "load_training_checkpoint",
    "save_state_dict",
]
