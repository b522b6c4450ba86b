# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import ctypes
import platform
import resource
from pathlib import Path

import pytest
import torch

from mmseg_resnest.io import memory
from mmseg_resnest.io.memory import (
    available_memory,
    forget_peak_memory,
    give_back_freed_memory,
    keep_freed_memory,
    peak_memory,
)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_memory_is_used_again() -> None:
    """Without the setting every one of these blocks is 8192 new pages."""
    assert keep_freed_memory()
    try:
        for _ in range(20):  # the heap grows to what is needed
            torch.empty(1 << 23).fill_(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.empty(1 << 23).fill_(1)  # 32 MiB
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 8192
    finally:  # the other tests of this process give theirs back
        for option in (-1, -3):
            ctypes.CDLL(None).mallopt(option, 128 << 10)
        give_back_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps it")
def test_kept_memory_is_given_back() -> None:
    assert keep_freed_memory()
    try:
        torch.empty(1 << 26).fill_(1)  # 256 MiB
        assert give_back_freed_memory()
        forget_peak_memory()  # the peak is what is resident now
        before = peak_memory()
        torch.empty(1 << 26).fill_(1)
        assert peak_memory() - before >= 255 << 20
    finally:
        for option in (-1, -3):
            ctypes.CDLL(None).mallopt(option, 128 << 10)
        give_back_freed_memory()


def test_a_c_library_without_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
    assert give_back_freed_memory() is False


def test_available_memory_is_what_the_system_or_the_container_leaves(tmp_path: Path) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    assert available_memory(meminfo, cgroup) is None
    meminfo.write_text("MemTotal:       16000 kB\nMemAvailable:   10000 kB\n")
    assert available_memory(meminfo, cgroup) == 10000 << 10
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("5000\n")
    assert available_memory(meminfo, cgroup) == 10000 << 10
    (cgroup / "memory.max").write_text("6000\n")
    (cgroup / "memory.stat").write_text("anon 900\ninactive_file 500\n")
    assert available_memory(meminfo, cgroup) == 6000 - 5000 + 500


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_peak_memory_counts_what_was_freed() -> None:
    give_back_freed_memory()  # of other tests of this process, which would be used again
    forget_peak_memory()
    before = peak_memory()
    torch.empty(1 << 26).fill_(1)  # 256 MiB
    assert peak_memory() - before > 100 << 20
