# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Lets the tools run from a clone whose package is not installed."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("mmseg_resnest") is None:
    sys.path.append(str(Path(__file__).resolve().parents[1]))
