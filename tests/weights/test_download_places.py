# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Downloads beside others: full disks, several processes, schemes of other projects."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from download_site import DATA, NAME, entry, left, site
from user_errors import raises_user_error

from mmseg_resnest.weights import download, is_address, resolve_checkpoint
from mmseg_resnest.weights.cache import _web_address
from mmseg_resnest.weights.download import default_limits

transfer_module = sys.modules["mmseg_resnest.weights.transfer"]

__all__ = ["entry", "site"]  # fixtures


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_full_disk(site, entry, tmp_path, monkeypatch, when):
    def read(*_):
        raise OSError(28, "No space left on device")

    if when == "meanwhile":
        monkeypatch.setattr(transfer_module, "read_body", read)
    else:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(transfer_module.shutil, "disk_usage", lambda _: usage(10, 0, 10))
    with raises_user_error("not-writable", "net"):
        download("net")
    assert left(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_made(site, entry, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "file" / "cache"))
    with raises_user_error("not-writable", "net"):
        download("net")
    assert not site.requests


@pytest.mark.long
def test_two_processes_want_the_same_file(site, entry, tmp_path):
    """The second waits for the first one's slow transfer, and does not fetch."""
    site.faults[f"/first/{NAME}"] = [("stall", 1000)]
    code = "from mmseg_resnest.weights import resolve_checkpoint; print(resolve_checkpoint({!r}))"
    words = [sys.executable, "-c", code.format(f"{site.address}/first/{NAME}")]
    env = {**os.environ, "MMSEG_RESNEST_TIMEOUT": "1"}
    processes = [subprocess.Popen(words, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    paths = {Path(process.communicate(timeout=240)[0].decode().strip()) for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    (path,) = paths
    assert path.parent.is_relative_to(tmp_path / "cache") and path.read_bytes() == DATA
    assert [asked for _, asked in site.requests] == [None, "bytes=1000-"]


def test_schemes_of_openmmlab():
    assert _web_address("open-mmlab://resnet101_v1c").endswith("resnet101_v1c-e67eebb6.pth")
    assert _web_address("torchvision://resnet50").startswith("https://download.pytorch.org/")
    assert _web_address("open-mmlab://resnet50_caffe").endswith(".pth")
    assert is_address("mmcls://resnext50")
    with raises_user_error("not-found", "open-mmlab://resnet7"):
        resolve_checkpoint("open-mmlab://resnet7")


def test_the_time_out_is_an_environment_variable(monkeypatch):
    monkeypatch.setenv("MMSEG_RESNEST_TIMEOUT", "3")
    assert default_limits().timeout == 3
    for text in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("MMSEG_RESNEST_TIMEOUT", text)
        with raises_user_error("environment", "MMSEG_RESNEST_TIMEOUT"):
            default_limits()
