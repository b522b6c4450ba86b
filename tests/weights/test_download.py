# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Addresses and catalogue names as checkpoints, against a server on this machine."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from download_site import (
    DATA,
    NAME,
    QUICK,
    catalogue_module,
    check_loaded,
    entry,
    left,
    module,
    site,
    zipped,
)
from user_errors import raises_user_error

from mmseg_resnest.weights import download, is_remote, load_checkpoint, resolve_checkpoint, verify
from mmseg_resnest.weights.download import Limits

transfer_module = sys.modules["mmseg_resnest.weights.transfer"]

__all__ = ["entry", "site"]  # fixtures


# --- what works -----------------------------------------------------------------------------


def test_a_name_is_fetched_once(site, entry, tmp_path):
    for source in ("net", "net", *entry.urls):
        check_loaded(source)
    assert site.requests == [(f"/first/{NAME}", None)]
    assert left(tmp_path / "cache") == [NAME]
    assert verify(entry) is None


def test_an_address_is_fetched_once(site, tmp_path):
    site.files["/x/weights.pth"] = DATA
    for _ in range(2):
        check_loaded(f"{site.address}/x/weights.pth")
    assert site.paths == ["/x/weights.pth"]
    assert left(tmp_path / "cache") == ["weights.pth"]


@pytest.mark.parametrize("suffix", [".pth", ".params"])
def test_a_published_zip_is_unpacked(site, entry, tmp_path, monkeypatch, suffix):
    sha1 = hashlib.sha1(DATA).hexdigest()
    packed = replace(
        entry,
        file=f"net-{sha1[:8]}{suffix}",
        digest=sha1,
        algorithm="sha1",
        urls=(f"{site.address}/net-{sha1[:8]}.zip",),
    )
    monkeypatch.setattr(catalogue_module, "_entries", lambda: {"net": packed})
    archive = zipped(packed.file, DATA)
    site.files[f"/net-{sha1[:8]}.zip"] = archive
    path = resolve_checkpoint("net")
    assert path.name == packed.file and path.read_bytes() == DATA
    assert left(tmp_path / "cache") == [packed.file]
    # the .zip or the checkpoint put there by hand, without a network
    site.files.clear()
    path.unlink()
    (path.parent / f"net-{sha1[:8]}.zip").write_bytes(archive)
    assert resolve_checkpoint("net").read_bytes() == DATA
    # archives that are refused
    for bad in (
        zipped(packed.file, b"x" + DATA),
        zipped(f"../{packed.file}", DATA),
        zipped(packed.file, bytes(100 << 20)),
        archive[:-100],
    ):
        shutil.rmtree(tmp_path / "cache")
        site.files[f"/net-{sha1[:8]}.zip"] = bad
        with raises_user_error("download", "net"):
            resolve_checkpoint("net")
        assert left(tmp_path / "cache") == []


def test_a_file_goes_before_a_name(site, entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_remote("net")
    torch.save({"mine": torch.ones(1)}, "net")
    assert not is_remote("net")
    assert list(load_checkpoint("net")) == ["mine"]
    assert not site.requests


def test_progress_is_told(site, entry, capsys):
    download("net")
    assert capsys.readouterr().err == f"fetching {NAME} ({len(DATA) / 1e6:.1f} MB) from " + (
        f"{site.address.removeprefix('http://')}\n"
    )


def test_a_terminal_gets_a_bar(site, entry, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    download("net")
    assert NAME in terminal.getvalue() and "B/s" in terminal.getvalue()
    assert "fetching" not in terminal.getvalue()


# --- cut off --------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_transfer_continues_where_it_was(site, entry, tmp_path, ranges):
    site.ranges = ranges
    site.faults[f"/first/{NAME}"] = [("cut", 1000), ("cut", 2000)]
    check_loaded("net")
    again = "bytes=3000-" if ranges else "bytes=2000-"
    assert [asked for _, asked in site.requests] == [None, "bytes=1000-", again]
    assert left(tmp_path / "cache") == [NAME]


def test_a_later_run_continues(site, entry, tmp_path):
    once = replace(QUICK, tries=1)
    site.files.pop(f"/second/{NAME}")
    site.faults[f"/first/{NAME}"] = [("cut", 1000)]
    with raises_user_error("download", "net"):
        download("net", once)
    assert left(tmp_path / "cache") == [f".{NAME[:-4]}.pth.json", f".{NAME}.part"]
    assert download("net", once).read_bytes() == DATA
    assert site.requests[-1] == (f"/first/{NAME}", "bytes=1000-")


def test_progress_makes_up_for_failures(site, entry, monkeypatch):
    """More cuts than tries, each after a good part."""
    monkeypatch.setattr(module, "_PROGRESS", 1000)
    site.faults[f"/first/{NAME}"] = [("cut", 2000)] * 12
    check_loaded("net")
    assert len(site.requests) == 13


@pytest.mark.parametrize("tags", [True, False])
def test_a_file_that_changed_meanwhile(site, entry, tags):
    """With a validator the server says so; without, the hash of the whole does."""
    site.tags = tags
    other = bytes(reversed(DATA))
    site.faults[f"/first/{NAME}"] = [("cut", 5000)]
    site.files[f"/first/{NAME}"] = other
    path = f"/first/{NAME}"

    class Changing(dict):
        def get(self, key, default=None):
            value = other if key == path and len(site.requests) == 1 else DATA
            return value if key == path else super().get(key, default)

    site.files = Changing(site.files)
    assert download("net").read_bytes() == DATA


def test_a_whole_part_is_only_checked(site, entry, tmp_path):
    """The process ended after the last byte."""
    site.faults[f"/first/{NAME}"] = [("cut", 1000)]
    site.files.pop(f"/second/{NAME}")
    with raises_user_error("download", "net"):
        download("net", replace(QUICK, tries=1))
    (tmp_path / "cache" / f".{NAME}.part").write_bytes(DATA)
    check_loaded("net")


def test_nothing_is_continued_that_nothing_vouches_for(site):
    """No hash and no validator: two halves could be of two files."""
    site.tags = False
    site.files["/w.pth"] = DATA
    site.faults["/w.pth"] = [("cut", 1000)]
    check_loaded(f"{site.address}/w.pth")
    assert [asked for _, asked in site.requests] == [None, None]


# --- wrong ----------------------------------------------------------------------------------

WRONG = {
    "wrong bytes": ("bytes", DATA[:-1] + b"!"),
    "half a file": ("bytes", DATA[:1000]),
    "nothing": ("bytes", b""),
    "a page": ("page", 200),
    "a page by another name": ("disguised page",),
    "not found": ("page", 404),
    "forbidden": ("status", 403),
    "partial": ("status", 206),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_next_address_is_asked(site, entry, tmp_path, name):
    site.faults[f"/first/{NAME}"] = [WRONG[name]]
    check_loaded("net")
    assert site.paths == [f"/first/{NAME}", f"/second/{NAME}"]
    assert left(tmp_path / "cache") == [NAME]
    # and when both are wrong
    shutil.rmtree(tmp_path / "cache")
    site.faults = {path: [WRONG[name]] for path in site.files}
    with raises_user_error("download", "net") as caught:
        load_checkpoint("net")
    assert NAME in caught.value.message and str(tmp_path / "cache") in caught.value.message
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(site, entry, status):
    site.faults[f"/first/{NAME}"] = [("status", status, [("Retry-After", "0")])] * 2
    check_loaded("net")
    assert site.paths == [f"/first/{NAME}"] * 3


def test_what_cannot_be_fetched_is_named_with_its_folder(site, tmp_path):
    with raises_user_error("download", "missing.pth") as caught:
        load_checkpoint(f"{site.address}/missing.pth")
    folder = Path(re.search(r"the folder (\S+)", str(caught.value))[1])
    assert left(tmp_path / "cache") == []
    (folder / "missing.pth").write_bytes(DATA)
    check_loaded(f"{site.address}/missing.pth")


def test_the_hash_in_an_address_is_checked_before_anything_reads_it(site, tmp_path):
    site.files["/weights-00c0ffee.pth"] = DATA
    with raises_user_error("download", "weights-00c0ffee.pth"):
        load_checkpoint(f"{site.address}/weights-00c0ffee.pth")
    assert left(tmp_path / "cache") == []


def test_an_unreadable_file_without_a_hash_is_not_kept(site, tmp_path):
    site.files["/weights.pth"] = b"nonsense" * 100
    with raises_user_error("corrupt", "weights.pth"):
        load_checkpoint(f"{site.address}/weights.pth")
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("address", ["http://host/", "http://host/..", "https://host/.hidden"])
def test_an_address_without_a_file(address):
    with raises_user_error("argument", address):
        load_checkpoint(address)


@pytest.mark.long
@pytest.mark.parametrize("fault", [("hang",), ("stall", 1000), ("trickle",)], ids=lambda f: f[0])
def test_a_hang_ends(site, entry, fault):
    site.faults = {path: [fault] * 5 for path in site.files}
    with raises_user_error("download", "net"):
        download("net", Limits(timeout=0.5, tries=2, backoff=0.01))
    assert len(site.requests) == 4


def test_without_a_network(site, entry, tmp_path, monkeypatch):
    closed = replace(entry, urls=("http://127.0.0.1:9/net.pth", "http://nowhere.invalid/net.pth"))
    monkeypatch.setattr(catalogue_module, "_entries", lambda: {"net": closed})
    with raises_user_error("download", "net") as caught:
        load_checkpoint("net")
    text = str(caught.value)
    assert f"Put the file {NAME} into the folder {tmp_path / 'cache'}" in text
    assert all(url in text for url in closed.urls)
    # by hand: the right file is used, another one refused and left alone
    file = tmp_path / "cache" / NAME
    file.write_bytes(DATA[:-1] + b"!")
    with raises_user_error("download", "net"):
        load_checkpoint("net")
    assert file.exists()
    file.write_bytes(DATA)
    check_loaded("net")


def test_a_damaged_file_in_the_cache_is_fetched_again(site, entry, tmp_path):
    check_loaded("net")
    (tmp_path / "cache" / NAME).write_bytes(b"damaged")
    assert verify(entry) is not None
    check_loaded("net")
    assert verify(entry) is None
