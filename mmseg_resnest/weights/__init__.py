# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Checkpoint files: fetching them, reading them safely and turning their names into ours.

MMEngine's own loading stays as it is; :func:`~mmseg_resnest.weights.use_safe_loaders` makes it as
safe for a whole process.
"""

from .cache import (
    cache_folder,
    cache_path,
    check_remote,
    download,
    download_file,
    is_address,
    is_remote,
    verify,
)
from .catalogue import Entry, catalogue, did_you_mean, find
from .convert import Conversion, analyse, convert_state_dict
from .export import EXPORT_LAYOUTS, export_state_dict
from .hub import pinned
from .load import load_checkpoint, load_training_checkpoint, resolve_checkpoint
from .load_into import load_backbone, load_into
from .mmengine_loaders import use_safe_loaders
from .save import save_state_dict

__all__ = [
    "EXPORT_LAYOUTS",
    "Conversion",
    "Entry",
    "analyse",
    "cache_folder",
    "cache_path",
    "catalogue",
    "check_remote",
    "convert_state_dict",
    "did_you_mean",
    "download",
    "download_file",
    "export_state_dict",
    "find",
    "is_address",
    "is_remote",
    "load_backbone",
    "load_checkpoint",
    "load_into",
    "load_training_checkpoint",
    "pinned",
    "resolve_checkpoint",
    "save_state_dict",
    "use_safe_loaders",
    "verify",
]
