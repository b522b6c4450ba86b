# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A model behind HTTP: batches, limits, metrics."""

from .app import create_app
from .batcher import Batcher, Busy
from .limits import Limits

__all__ = ["Batcher", "Busy", "Limits", "create_app"]
