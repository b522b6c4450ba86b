# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Forked processes that use OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2

__all__ = ["opencv_on_one_thread"]


@contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """Lets OpenCV work on one thread in the processes that are forked in this context.

    A fork has OpenCV's thread pool without its threads: whatever uses the pool waits for ever,
    ``cv2.setNumThreads`` in the fork included.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
