# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A local web page to try models on images of one's own."""

from .app import Choice, Limits, create_app
from .server import run_app

__all__ = ["Choice", "Limits", "create_app", "run_app"]
