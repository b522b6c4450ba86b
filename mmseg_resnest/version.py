# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The version of the distribution ``mmseg-resnest``."""

__version__ = "0.1.0"
