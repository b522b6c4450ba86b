# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Whatever a server answers: bounded, and an error in words."""

from __future__ import annotations

import contextlib
import gzip
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from user_errors import raises_user_error

from mmseg_resnest.inference import images
from mmseg_resnest.io import http
from mmseg_resnest.io.http import fetch_bytes
from mmseg_resnest.weights import download_file

BOMB = gzip.compress(bytes(64 << 20))


@pytest.fixture
def site():
    """An address at which ``answers[path]`` (status, headers, body or a function) is served."""
    answers: dict = {}
    asked: list = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            asked.append((self.path, self.headers.get("Accept-Encoding")))
            status, headers, body = answers[self.path]
            self.wfile.write(f"HTTP/1.1 {status}\r\n".encode("latin-1"))
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                if value is not None:
                    self.wfile.write(f"{key}: {value}\r\n".encode())
            self.wfile.write(b"Connection: close\r\n\r\n")
            with contextlib.suppress(OSError):  # the client has had enough
                self.wfile.write(body)
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    server.answers, server.asked = answers, asked
    server.address = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def fetch(site, path="/a", max_bytes=1 << 20, timeout=10.0, most=20.0):
    return fetch_bytes(site.address + path, "image a", max_bytes, timeout, most)


def test_a_file(site):
    site.answers["/a"] = ("200 OK", {}, b"hello")
    assert fetch(site) == b"hello"
    assert site.asked == [("/a", "identity")]


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_compressed_answer_is_refused_and_never_unpacked(site, encoding, tmp_path):
    site.answers["/a"] = ("200 OK", {"Content-Encoding": encoding}, BOMB)
    with raises_user_error("download", "image a"):
        fetch(site)
    with raises_user_error("download", site.address):
        download_file(f"{site.address}/a", tmp_path / "a")
    with raises_user_error("download", site.address):
        images.read_image(f"{site.address}/a")
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []


def test_a_file_that_is_itself_compressed_arrives_as_it_is(site, tmp_path):
    site.answers["/a.tgz"] = ("200 OK", {"Content-Encoding": "x-gzip"}, BOMB)
    path = download_file(f"{site.address}/a.tgz", tmp_path / "a.tgz")
    assert path.read_bytes() == BOMB


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://host/a", "data:,a", "gopher://a"])
def test_redirects_to_other_schemes(site, where, tmp_path):
    site.answers["/a"] = ("302 Found", {"Location": where}, b"")
    with raises_user_error("download", "image a"):
        fetch(site)
    with raises_user_error("download", site.address):
        download_file(f"{site.address}/a", tmp_path / "a")


def test_redirects(site):
    site.answers["/a"] = ("301 Moved", {"Location": "b/c?d=1"}, b"")
    site.answers["/b/c?d=1"] = ("307 Moved", {"Location": f"{site.address}/d"}, b"")
    site.answers["/d"] = ("200 OK", {}, b"there")
    assert fetch(site) == b"there"
    site.answers["/d"] = ("302 Found", {"Location": "/a"}, b"")
    with raises_user_error("download", "image a"):
        fetch(site)


def test_the_body_of_a_redirect_is_not_read(site):
    headers = {"Location": "/d", "Content-Encoding": "gzip", "Content-Length": str(10**12)}
    site.answers["/a"] = ("302 Found", headers, BOMB)
    site.answers["/d"] = ("200 OK", {}, b"there")
    assert fetch(site) == b"there"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Length": str(10**15)}, b"x"),
        ({"Content-Length": None}, bytes(2 << 20)),
        ({"Content-Length": "100"}, b"x"),
        ({"Content-Length": None, "Transfer-Encoding": "chunked"}, b"zz\r\n"),
        (
            {"Content-Length": None, "Transfer-Encoding": "chunked"},
            b"f" * 15 + b"\r\n" + b"x" * 100,
        ),
        ({f"X-{i}": "x" for i in range(300)}, b"x"),
        ({"X": "x" * 100_000}, b"x"),
    ],
)
def test_sizes_that_lie(site, headers, body):
    site.answers["/a"] = ("200 OK", headers, body)
    with raises_user_error("download", "image a"):
        fetch(site)


def test_the_text_of_a_status_is_cleaned(site):
    site.answers["/a"] = ("404 \x1b[31mred\x07" + "x" * 500, {"Content-Encoding": "gzip"}, BOMB)
    with raises_user_error("download", "image a") as caught:
        fetch(site)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_the_whole_has_a_time(site, monkeypatch):
    clock = iter(range(0, 10_000, 15))
    monkeypatch.setattr(http, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    site.answers["/a"] = ("200 OK", {}, bytes(1000))
    with raises_user_error("download", "image a"):
        fetch(site, most=10.0)


def test_a_file_larger_than_any(site, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["mmseg_resnest.weights.transfer"], "_MAX_BYTES", 1000)
    site.answers["/a"] = ("200 OK", {}, bytes(2000))
    site.answers["/b"] = ("200 OK", {"Content-Length": None}, bytes(2000))
    for name in ("a", "b"):
        with raises_user_error("download", f"/{name}"):
            download_file(f"{site.address}/{name}", tmp_path / name)
        assert not (tmp_path / name).exists()
