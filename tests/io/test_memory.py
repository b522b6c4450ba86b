# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
from __future__ import annotations

import ctypes
import platform
import resource

import pytest
import torch

from mmseg_resnest.io import memory
from mmseg_resnest.io.memory import keep_freed_memory


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


def test_a_c_library_without_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
