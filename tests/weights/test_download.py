# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Addresses and catalogue names as checkpoints, against a server on this machine."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import sys
import threading
import zipfile
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from user_errors import raises_user_error

from mmseg_resnest.weights import (
    catalogue,
    download,
    is_address,
    is_remote,
    load_checkpoint,
    resolve_checkpoint,
    verify,
)
from mmseg_resnest.weights.cache import _web_address
from mmseg_resnest.weights.download import Limits, default_limits

module = sys.modules["mmseg_resnest.weights.download"]
catalogue_module = sys.modules["mmseg_resnest.weights.catalogue"]
transfer_module = sys.modules["mmseg_resnest.weights.transfer"]
QUICK = Limits(timeout=10.0, tries=3, backoff=0.01)


class Site:
    """What the server does with each path: ``files`` it has, ``faults`` it makes.

    ``faults`` maps a path to a list of faults, one for each request; when they are used up it
    serves the file. A fault is ``("cut", bytes)``, ``("bytes", data)``, ``("page", status)``,
    ``("status", number)``, ``("hang",)``, ``("stall", bytes)`` or ``("trickle",)``.
    """

    def __init__(self):
        self.files = {}
        self.faults = {}
        self.ranges = True
        self.tags = True
        self.requests = []
        self.done = threading.Event()

    @property
    def paths(self):
        return [path for path, _ in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *args):
        pass

    def answer(self, status, body, headers=(), length=None):
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def do_GET(self):
        site = self.site
        asked = self.headers.get("Range")
        site.requests.append((self.path, asked))
        faults = site.faults.get(self.path, [])
        fault = faults.pop(0) if faults else None
        kind = fault[0] if fault else None
        if kind == "hang":
            site.done.wait(20)
            return
        if kind == "page":
            body = b"<!DOCTYPE html><html>Sorry</html>" * 10
            headers = [("Content-Type", "text/html" if fault[1] == 200 else "text/plain")]
            self.answer(fault[1], body, headers)
            return
        if kind == "disguised page":
            self.answer(200, b"\n<html>Sorry</html>" * 10, [("Content-Type", "application/zip")])
            return
        if kind == "status":
            self.answer(fault[1], b"no", fault[2] if len(fault) > 2 else ())
            return
        data = fault[1] if kind == "bytes" else site.files.get(self.path)
        if data is None:
            self.answer(404, b"not here")
            return
        tag = f'"{hashlib.sha1(data).hexdigest()}"'
        headers = [("ETag", tag)] if site.tags else []
        status, start = 200, 0
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if match and site.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(match[1])
            if start >= len(data):
                self.answer(416, b"", [("Content-Range", f"bytes */{len(data)}")])
                return
            status = 206
            headers.append(("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}"))
        body = data[start:]
        if kind == "cut":
            self.answer(status, body[: fault[1]], headers, len(body))
        elif kind == "stall":
            self.answer(status, body[: fault[1]], headers, len(body))
            self.wfile.flush()
            site.done.wait(20)
        elif kind == "trickle":
            self.answer(status, b"", headers, len(body))
            while not site.done.wait(0.05):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
        else:
            self.answer(status, body, headers)


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site()
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "default_limits", lambda: QUICK)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    http = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}), bind_and_activate=True
    )
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # clients hang up on purpose
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.address = f"http://127.0.0.1:{http.server_port}"
    yield site
    site.done.set()
    http.shutdown()
    thread.join()
    http.server_close()


def torch_bytes(record) -> bytes:
    buffer = io.BytesIO()
    torch.save(record, buffer)
    return buffer.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


TENSORS = {"a": torch.arange(20000.0)}
DATA = torch_bytes(TENSORS)
DIGITS = hashlib.sha256(DATA).hexdigest()
NAME = f"net-{DIGITS[:8]}.pth"


@pytest.fixture
def entry(site, monkeypatch):
    """A catalogue with one entry, published at two addresses of the server."""
    only = replace(
        catalogue()["resnest50"],
        name="net",
        file=NAME,
        digest=DIGITS,
        algorithm="sha256",
        urls=(f"{site.address}/first/{NAME}", f"{site.address}/second/{NAME}"),
    )
    site.files = {f"/first/{NAME}": DATA, f"/second/{NAME}": DATA}
    monkeypatch.setattr(catalogue_module, "_entries", lambda: {"net": only})
    return only


def left(folder: Path) -> list[str]:
    """What is in the cache, but for the locks."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def check_loaded(source):
    assert torch.equal(load_checkpoint(source)["a"], TENSORS["a"])


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


# --- disks ----------------------------------------------------------------------------------


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


# --- several at once ------------------------------------------------------------------------


def test_two_processes_want_the_same_file(site, entry, tmp_path):
    """The second waits for the first one's slow transfer, and does not fetch."""
    site.faults[f"/first/{NAME}"] = [("stall", 1000)]
    limits = replace(QUICK, timeout=1.0)

    def run(number: int) -> None:
        (tmp_path / f"path{number}").write_text(str(download("net", limits)))

    processes = [get_context("fork").Process(target=run, args=(i,)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    path = tmp_path / "cache" / NAME
    assert [(tmp_path / f"path{i}").read_text() for i in range(2)] == [str(path)] * 2
    assert path.read_bytes() == DATA
    assert [asked for _, asked in site.requests] == [None, "bytes=1000-"]


# --- names ----------------------------------------------------------------------------------


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
