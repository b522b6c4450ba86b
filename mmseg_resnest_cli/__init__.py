# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The application: the command ``mmseg-resnest``, one file a subcommand."""

from .main import main

__all__ = ["main"]
