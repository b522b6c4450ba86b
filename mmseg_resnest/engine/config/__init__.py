# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Configs: found, read, changed from the command line, and checked before anything is built."""

from .check import check_config
from .load import command_name, load_config, require, require_segmentation, similar_configs
from .options import parse_cfg_options
from .portable import config_folder, find_config, portable_name
from .text import FormattedOnce, config_as_text
from .types import named_types

__all__ = ["FormattedOnce", "check_config", "command_name", "config_as_text", "config_folder"]
__all__ += ["find_config", "load_config", "named_types", "parse_cfg_options", "portable_name"]
__all__ += ["require", "require_segmentation", "similar_configs"]
