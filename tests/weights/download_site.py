# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A server on this machine with a checkpoint and faults, and a catalogue that names it."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from mmseg_resnest.weights import catalogue, load_checkpoint
from mmseg_resnest.weights.download import Limits

module = sys.modules["mmseg_resnest.weights.download"]
catalogue_module = sys.modules["mmseg_resnest.weights.catalogue"]
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
