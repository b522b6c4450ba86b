# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Addresses as checkpoints, against a server on this machine."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from mmseg_resnest import UserError
from mmseg_resnest.weights import load_checkpoint


class _Handler(SimpleHTTPRequestHandler):
    requests: list[str] = []

    def log_message(self, *args):
        self.requests.append(self.path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder served over HTTP, and its address; downloads go to another folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("MMSEG_RESNEST_CACHE", str(tmp_path / "cache"))
    _Handler.requests.clear()
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_an_address_is_fetched_once(server, tmp_path):
    folder, address = server
    tensors = {"a": torch.arange(5.0)}
    torch.save(tensors, folder / "weights.pth")
    for _ in range(2):
        loaded = load_checkpoint(f"{address}/weights.pth")
        assert torch.equal(loaded["a"], tensors["a"])
    assert _Handler.requests == ["/weights.pth"]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["weights.pth"]


def test_what_cannot_be_fetched_is_named_with_its_folder(server, tmp_path):
    _, address = server
    with pytest.raises(UserError, match=r"missing\.pth into the folder .*cache"):
        load_checkpoint(f"{address}/missing.pth")
    assert not list((tmp_path / "cache").iterdir())


def test_wrong_bytes_are_refused_and_not_kept(server, tmp_path):
    folder, address = server
    torch.save({"a": torch.zeros(1)}, folder / "weights-00c0ffee.pth")
    with pytest.raises(UserError, match="checksum"):
        load_checkpoint(f"{address}/weights-00c0ffee.pth")
    assert not list((tmp_path / "cache").iterdir())


def test_an_address_without_a_file(server):
    with pytest.raises(UserError, match="no file name"):
        load_checkpoint(f"{server[1]}/")
