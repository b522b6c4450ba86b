# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Memory: what the C library does with freed blocks, and errors that say there is no more."""

from __future__ import annotations

import ctypes


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory of tensors and images for the next ones.

    glibc gives large blocks back to the system when they are freed; each step then gets its
    activations as new pages, which the system must first fill with zeros. The peak stays as it is.
    The setting cannot be undone, so that only the application makes it. Returns whether the C
    library took it; others than glibc have none.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(m_mmap_threshold, 1 << 30) and mallopt(m_trim_threshold, (1 << 31) - 1))


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, NumPy, torch or OpenCV says that memory ran out."""
    said = ("out of memory", "can't allocate memory", "not enough memory", "Insufficient memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)
