# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Real images, in the folder that MMSEG_RESNEST_DATA names, and golden outputs beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["DATA", "golden_folder_with", "needs"]

#: A folder that does not exist where the variable is not set.
DATA = Path(os.environ.get("MMSEG_RESNEST_DATA") or "MMSEG_RESNEST_DATA is not set")


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test where the data have no folder of this name."""
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"no {name} in {DATA}")


def golden_folder_with(file: str) -> Path:
    """The golden folder, which has this file; skips the test where there is none."""
    folder = DATA.parent / "golden"
    if not DATA.is_dir() or not (folder / file).is_file():
        pytest.skip("no golden outputs: MMSEG_RESNEST_DATA has no folder golden beside it")
    return folder
