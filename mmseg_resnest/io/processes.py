# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Processes: how many can run, which one wrote a record, and whether it still runs."""

from __future__ import annotations

import os
import platform
import re
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PF_EXITING = 0x4  # linux/sched.h
#: Flags of processors with units for bfloat16, of x86 and of ARM.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
#: The same for sums of products of 8-bit numbers.
_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the processor has units for bfloat16; None where the system does not tell."""
    flags = _flags(cpuinfo)
    return None if flags is None else not _BFLOAT16.isdisjoint(flags)


def has_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the processor has units for products of 8-bit numbers; None as above."""
    flags = _flags(cpuinfo)
    return None if flags is None else not _INT8.isdisjoint(flags)


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the system calls the processor; of what architecture it is where it does not tell."""
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(cpuinfo), re.M)
    return found[1].strip() if found else platform.machine()


def processor_maker(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """``GenuineIntel``, ``AuthenticAMD`` and the like; empty where the system does not tell."""
    found = re.search(r"^vendor_id\s*:\s*(\S+)$", _cpuinfo(cpuinfo), re.M)
    return found[1] if found else ""


def _flags(cpuinfo: Path) -> set[str] | None:
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo(cpuinfo), re.M)
    return None if found is None else set(found[1].split())


def _cpuinfo(cpuinfo: Path) -> str:
    try:
        return cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cpu_count() -> int:
    """Cores that this process may use: of the machine, less those a scheduler took away."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent(parent: int | None = None) -> None:
    """Make this worker process end within a second of its parent, and leave Ctrl-C to it."""
    expected = os.getppid() if parent is None else parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def this_process() -> dict[str, Any]:
    """What tells this process apart, as plain data for a file.

    ``machine`` is this start of the system and the set of processes that is seen in it,
    ``process_start`` is in ticks since then; None if not on Linux.
    """
    try:
        start = _start_of(os.getpid())
    except OSError:
        start = None
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": _machine(),
        "process_start": start,
    }


def is_alive(record: Mapping[str, Any]) -> bool | None:
    """Whether the process that wrote a record of :func:`this_process` still runs.

    None where that cannot be found out: the process is of another host or another container. False
    for this process itself: it has replaced itself (exec), or forgotten the record.
    """
    pid, start, machine = (record.get(key) for key in ("pid", "process_start", "machine"))
    if machine is None or machine != _machine():
        return None
    if type(pid) is not int or type(start) is not int or not 0 < pid < 1 << 31:
        return None
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    try:
        return _start_of(pid) == start
    except OSError:
        return None  # it is hidden from this user


def _start_of(pid: int) -> int | None:
    """When a process started, in ticks since the system did; None if it has ended, or is about to.

    One that was killed may take seconds to give back what it had; it executes nothing any more.
    """
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    ends = fields[0] in (b"Z", b"X") or int(fields[6]) & _PF_EXITING
    return None if ends else int(fields[19])


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
