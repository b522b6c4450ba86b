# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Connections that stay open, or that send or read slowly, do not stop a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from user_errors import raises_user_error

pytest.importorskip("uvicorn", reason="Uvicorn is not installed (pip install uvicorn)")
pytest.importorskip("resource", reason="Linux and macOS only")

from uvicorn import Config
from uvicorn.server import ServerState

from mmseg_resnest.apps import connections as module
from mmseg_resnest.apps.connections import BoundedProtocol, ConnectionLimits, Connections

HALF = b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "


@dataclass
class Served:
    """A server in a process of its own."""

    address: str
    log: Path

    def connect(self) -> socket.socket:
        url = httpx.URL(self.address)
        connection = socket.create_connection((url.host, url.port), timeout=60)
        connection.settimeout(60)
        return connection

    def get(self, path: str = "/") -> httpx.Response:
        transport = httpx.HTTPTransport(retries=3)
        with httpx.Client(transport=transport, timeout=60) as client:
            return client.get(self.address + path)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def without_files(self) -> int:
        """How often the log says that nothing can be opened."""
        return sum("out of system resource" in line for line in self.lines())


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    processes: list[subprocess.Popen[str]] = []

    def start(files: int, **limits: float) -> Served:
        log = tmp_path / "log"
        with log.open("w") as errors:
            script = Path(__file__).with_name("bounded_server.py")
            process = subprocess.Popen(
                [sys.executable, str(script), str(files), json.dumps(limits)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        processes.append(process)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, log.read_text()
        return Served(address, log)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def is_closed(connection: socket.socket) -> bool:
    """Wait for the server to close it."""
    try:
        while connection.recv(1 << 20):
            pass
    except ConnectionError:
        pass  # reset
    except TimeoutError:
        return False
    return True


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_half_a_header_keeps_no_one_else_out(serve: Callable[..., Served]) -> None:
    served = serve(200, header=5.0)  # in which a busy machine sends one
    with contextlib.ExitStack() as stack:
        half = [stack.enter_context(served.connect()) for _ in range(220)]
        for connection in half:
            with contextlib.suppress(ConnectionError):  # dropped for a newer one already
                connection.sendall(HALF)
        assert [served.get().status_code for _ in range(5)] == [200] * 5
        assert all(is_closed(connection) for connection in half)
    assert served.get().status_code == 200
    assert len(served.lines()) < 10


@pytest.mark.long
def test_the_deadline_is_for_the_whole_header(serve: Callable[..., Served]) -> None:
    served = serve(200, header=0.5)
    with served.connect() as drip:
        drip.sendall(HALF)
        end = time.monotonic() + 60
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                drip.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() < end


@pytest.mark.long
def test_slow_bodies_and_slow_readers_are_dropped(serve: Callable[..., Served]) -> None:
    served = serve(200, header=60, body=0.5, answer=0.5)
    head = "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc"
    for path in ("/read", "/"):  # where the body is read, and where it is not
        with served.connect() as slow:
            slow.sendall(head.format(path).encode())
            assert is_closed(slow)
    with served.connect() as slow:
        slow.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        received = 0
        wait_until(lambda: served.get("/taken").text == "1")  # reads nothing meanwhile
        with contextlib.suppress(ConnectionError):
            while part := slow.recv(1 << 20):
                received += len(part)
        assert received < 64 << 20  # which do not fit into the buffers of the sockets
    assert served.get().status_code == 200


@pytest.mark.long
def test_what_breaks_the_protocol_fills_no_log(serve: Callable[..., Served]) -> None:
    served = serve(200)
    chunked = "POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for path in ("/read", "/"):
        for body in (b"1\r\nx\r\n" * 5000, b"no chunk\r\n", b"1\r\nx\r\n\0\r\n"):
            with served.connect() as broken, contextlib.suppress(ConnectionError):
                broken.sendall(chunked.format(path).encode())
                time.sleep(0.05)  # behind the answer, where the body is not read
                broken.sendall(body)
                assert is_closed(broken)
    with served.connect() as broken:
        broken.sendall(b"\0\r\n\r\n")
        assert broken.recv(100).startswith(b"HTTP/1.1 400 ")
    usual = (bytes(1500) for _ in range(3000))
    assert httpx.post(f"{served.address}/read", content=usual).status_code == 200
    assert served.lines() == []


@pytest.mark.long
def test_without_files_the_log_grows_slowly(serve: Callable[..., Served]) -> None:
    served = serve(200)
    with httpx.Client(base_url=served.address, timeout=60) as client:
        assert client.get("/no-files").status_code == 200
        began = time.monotonic()
        waiting = [served.connect() for _ in range(20)]
        for connection in waiting:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        wait_until(lambda: served.without_files() > 1)
        assert client.get("/files").status_code == 200
        seconds = time.monotonic() - began
        for connection in waiting:
            with connection:
                assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    assert served.without_files() <= seconds + 1


def test_limits_fit_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"total": 0}, {"per_client": -1}, {"header": 0}, {"body": 0}, {"answer": -1}):
        with raises_user_error("argument", f"limit {next(iter(wrong))}"):
            ConnectionLimits(**wrong)
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (8, 8))
    with raises_user_error("environment", "open files"):
        Connections(ConnectionLimits())
    monkeypatch.setattr(module, "_room", lambda: 60)
    known = Connections(ConnectionLimits(total=100, per_client=50))
    assert (known.total, known.per_client) == (60, 30)


def test_only_waiting_counts_as_waiting() -> None:
    """A client that asks often is not taken for one that never ends its header."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def talk() -> None:
        known = Connections(ConnectionLimits(header=10))
        protocol = BoundedProtocol(
            config=Config(app), server_state=ServerState(), app_state={}, connections=known
        )
        transport = Mock()
        transport.is_closing.return_value = False
        transport.get_write_buffer_size.return_value = 1
        transport.get_extra_info.side_effect = lambda name: {"peername": ("10.0.0.1", 1)}.get(name)
        protocol.connection_made(transport)
        assert not known.drop_oldest("10.0.0.1")  # it still reads an answer
        transport.get_write_buffer_size.return_value = 0
        assert not known.drop_oldest("10.0.0.2")
        for now in range(0, 100, 9):
            protocol.check_time(now)
            assert list(known.waiting) == [protocol]
            answer.clear()
            protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not known.waiting  # a request that is served is never dropped for a newcomer
            answer.set()
            await asyncio.gather(*protocol.tasks)
        assert not transport.abort.called
        protocol.data_received(b"GET / HTTP/1.1\r\n")
        protocol.check_time(now + 11)
        assert not transport.abort.called  # it has begun to wait behind the last answer
        protocol.check_time(now + 22)
        assert transport.abort.called

    answer = asyncio.Event()
    asyncio.run(talk())
