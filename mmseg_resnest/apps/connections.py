# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Connections within bounds: how many, from whom, and how long each may take for what.

Uvicorn waits for the end of a request's header for ever, and accepts connections until no file can
be opened any more. Its extension points are used here: the listening socket, the protocol class
and the server's tick. ``tests/apps/test_connections.py`` fails if one of them moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import UserError

__all__ = ["BoundedProtocol", "ConnectionLimits", "Connections", "Listener"]

_RESERVE = 32  # files that may be opened besides connections: processes, models, logs
_STARTING = 4  # connections that are accepted in one turn of the event loop
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 21\r\n\r\ntoo many connections\n"
)
# A body in chunks comes in pieces of some KiB; parsing one costs as much as copying 16 KiB.
_FREE_CHUNKS = 1000
_BYTES_A_CHUNK = 1024


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds on connections.

    Attributes:
        total: Open at a time; less where the process may not open as many files.
        per_client: Open at a time from one address; 0 is no limit, for a service behind a proxy,
            where all have the proxy's address.
        header: Seconds from the connection, or from the answer before, to the end of a request's
            header.
        body: Seconds from there to the end of its body.
        answer: Seconds that a client takes to read an answer.
    """

    total: int = 1024
    per_client: int = 128
    header: float = 10.0
    body: float = 60.0
    answer: float = 60.0

    def __post_init__(self) -> None:
        if self.total < 1:
            raise UserError("argument", "limit total", f"must be at least 1, not {self.total}")
        if self.per_client < 0:
            raise UserError("argument", "limit per_client", "must be 0 (no limit) or more")
        for name in ("header", "body", "answer"):
            if getattr(self, name) <= 0:
                raise UserError("argument", f"limit {name}", "must be above 0 seconds")


def _room() -> int:
    """Connections that the process may open besides what it has open and keeps free."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return sys.maxsize
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    files = 64
    with contextlib.suppress(OSError):
        files = len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))
    room = limit - files - _RESERVE
    if room < 8:
        raise UserError(
            "environment",
            "limit of open files",
            f"{limit}, of which {files} are open, is too low to serve; run ulimit -n 1024",
        )
    return room


class Connections:
    """The open connections of a server, all of them used by its event loop alone."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.total = min(limits.total, _room())
        # One address alone never fills the server.
        self.per_client = min(limits.per_client, max(1, self.total // 2))
        self.open: Counter[str] = Counter()
        self.protocols: set[BoundedProtocol] = set()
        # Those that have not sent a whole header yet, the oldest first.
        self.waiting: dict[BoundedProtocol, None] = {}

    def full(self) -> bool:
        """Whether one has to go before another one comes."""
        return self.open.total() >= self.total

    def starting(self) -> int:
        """Accepted ones whose protocol asyncio has still to make, so that none can be dropped."""
        return self.open.total() - len(self.protocols)

    def client_full(self, client: str) -> bool:
        """Whether a client has as many as it may."""
        return 0 < self.per_client <= self.open[client]

    def drop_oldest(self, client: str | None = None) -> bool:
        """Close the connection, of a client, that has been without a whole header for longest.

        Returns whether there was one.
        """
        for protocol in self.waiting:
            # One that still reads its last answer is not cut off; that has a deadline of its own.
            if (
                client in (None, protocol.address)
                and not protocol.transport.get_write_buffer_size()
            ):
                protocol.drop()
                return True
        return False

    def check_times(self) -> None:
        """Close what takes too long."""
        now = time.monotonic()
        for protocol in list(self.protocols):
            protocol.check_time(now)


class _Client(socket.socket):
    """A connection's socket, which is counted until its file is closed."""

    counted: tuple[Counter[str], str] | None = None

    def close(self) -> None:
        super().close()
        if self.counted is not None:
            counter, client = self.counted
            self.counted = None
            counter[client] -= 1
            if not counter[client]:
                del counter[client]


class Listener(socket.socket):
    """A listening socket that accepts no more connections than there is room for.

    When there is no room, the oldest connection without a whole header makes some; when all are
    being served, the new one is refused with 503.
    """

    connections: Connections
    _pause = 0.0

    def accept(self) -> tuple[socket.socket, Any]:
        """For asyncio, which calls it until it raises BlockingIOError."""
        if time.monotonic() < self._pause:
            raise BlockingIOError
        known = self.connections
        if known.starting() >= _STARTING or (known.full() and known.drop_oldest()):
            raise BlockingIOError  # to go on in the next turn of the event loop
        try:
            accepted, address = super().accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            raise
        except OSError:
            # asyncio logs this, and tries again after a second. Without the pause it would log
            # the same for every place in the backlog.
            self._pause = time.monotonic() + 0.5
            raise
        client = str(address[0]) if address else ""
        connection = _Client(self.family, self.type, self.proto, fileno=accepted.detach())
        if known.full() or (known.client_full(client) and not known.drop_oldest(client)):
            self._refuse(connection)
            raise BlockingIOError
        known.open[client] += 1
        connection.counted = known.open, client
        return connection, address

    @staticmethod
    def _refuse(connection: socket.socket) -> None:
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.send(_REFUSAL)
            connection.shutdown(socket.SHUT_WR)


class _Parser(h11.Connection):
    """Refuses bodies in very many tiny chunks, each of which costs a turn of the parser."""

    _chunks = _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > _FREE_CHUNKS + self._bytes // _BYTES_A_CHUNK:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event


class BoundedProtocol(H11Protocol):
    """Uvicorn's protocol, with a time for each thing that a client may take its time for."""

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Parser(h11.SERVER)
        self.known = connections
        self.address = ""
        self._now_doing: tuple[str, object] = ("header", None)
        self._since = time.monotonic()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Also remember who it is."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        self.known.protocols.add(self)
        self.known.waiting[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Also forget it."""
        self.known.protocols.discard(self)
        self.known.waiting.pop(self, None)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Also note whether a whole header is there."""
        super().handle_events()
        if self._served():
            self.known.waiting.pop(self, None)

    def on_response_complete(self) -> None:
        """Also wait for the next header."""
        self.known.waiting[self] = None  # at the end: it has just been of use
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Also where an answer has been sent already: the request's body breaks behind it."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.drop()

    def drop(self) -> None:
        """Close it at once."""
        self.known.waiting.pop(self, None)
        self.transport.abort()

    def _served(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _doing(self) -> str:
        if self.transport.is_closing() or self.flow.write_paused:
            return "answer"
        if self._served():
            return "body" if self.cycle.more_body else ""
        # Behind an answer that did not wait for the body its rest may come.
        return "body" if self.conn.their_state is h11.SEND_BODY else "header"

    def check_time(self, now: float) -> None:
        """Close the connection if its client has taken too long for one thing."""
        doing = (self._doing(), self.cycle)
        if doing[0] != self._now_doing[0] or doing[1] is not self._now_doing[1]:
            self._now_doing, self._since = doing, now
        elif doing[0] and now - self._since > getattr(self.known.limits, doing[0]):
            self.drop()
