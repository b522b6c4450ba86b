# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Removing a file, and never anything else of that name."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def remove_file(path: Path) -> bool:
    """Remove a regular file; links, folders and all else stay.

    Returns:
        Whether it was removed.

    Raises:
        OSError: It cannot be removed.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
