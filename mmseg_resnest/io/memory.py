# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Memory: how much there is, what the C library does with freed blocks, and errors for no more."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def available_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that this process may still use without swapping; None where that is not known.

    What the system has available (``MemAvailable`` of proc(5)), or what a container's limit
    (cgroup v2 or v1) leaves, whichever is less.
    """
    found = []
    with contextlib.suppress(OSError):
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.M)
        if match:
            found.append(int(match[1]) * 1024)
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            left = int((cgroup / most).read_text()) - int((cgroup / used).read_text())
            found.append(max(0, left + _reclaimable(cgroup / Path(most).parent / "memory.stat")))
    return min(found, default=None)


def _reclaimable(stat: Path) -> int:
    """Bytes of files that the kernel keeps in memory and gives back when they are needed."""
    with contextlib.suppress(OSError):
        match = re.search(r"^(?:total_)?inactive_file (\d+)$", stat.read_text(), re.M)
        return int(match[1]) if match else 0
    return 0


def forget_peak_memory() -> None:
    """Let :func:`peak_memory` start from what is in memory now, where the system can do that."""
    with contextlib.suppress(OSError):  # proc(5): the peak is what is resident now
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most bytes of memory that this process has had, since :func:`forget_peak_memory`.

    0 where the system does not tell.
    """
    with contextlib.suppress(OSError):
        match = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
        if match:
            return int(match[1]) * 1024
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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


def give_back_freed_memory() -> bool:
    """Give the memory of freed blocks back to the system, where the C library keeps it (glibc).

    For the end of a part of a run whose blocks later ones do not use again. Returns whether there
    was any.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return False
    return bool(trim(0))


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, NumPy, torch or OpenCV says that memory ran out."""
    said = ("out of memory", "can't allocate memory", "not enough memory", "Insufficient memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)
