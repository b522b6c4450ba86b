# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The C library's handling of freed memory."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory of tensors and images for the next ones.

    glibc gives large blocks back to the system when they are freed; each step then gets its
    activations, and each image its pixels, as new pages, which the system must first fill with
    zeros. The peak stays as it is; between the steps the process keeps what the largest one took.
    A process that is forked later has the setting as well. The setting cannot be read or undone,
    so that only the application makes it.

    Returns:
        Whether the C library took the setting; others than glibc have none.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(m_mmap_threshold, 1 << 30) and mallopt(m_trim_threshold, (1 << 31) - 1))
