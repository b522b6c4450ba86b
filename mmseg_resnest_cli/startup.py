# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the application changes in its own process; the library changes nothing."""

from __future__ import annotations

import gc

__all__ = ["prepare_process"]


def prepare_process() -> None:
    """Prepare the process of a command; called once, after its imports.

    Objects that the imports made are exempt from garbage collection: no collection scans them
    again, and forked data loading workers share their memory.
    """
    gc.freeze()
