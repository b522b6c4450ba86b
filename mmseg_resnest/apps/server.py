# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""An application on a socket, with bounds on its connections."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn

from ..errors import UserError
from .connections import BoundedProtocol, ConnectionLimits, Connections, Listener

__all__ = ["Server", "run"]


class Server(uvicorn.Server):
    """Calls ``ready`` when it takes requests, and closes connections that take too long.

    Set ``should_exit`` to end it.
    """

    ready: Callable[[], Any]
    connections: Connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Also call ``ready``."""
        await super().startup(sockets)
        self.ready()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % 3 == 0:
            self.connections.check_times()
        return await super().on_tick(counter)


def run(
    app: Any,
    host: str,
    port: int,
    limits: ConnectionLimits,
    ready: Callable[[str, Server], Any],
    backlog: int = 128,
    graceful: int = 3,
) -> None:
    """Serve an ASGI application until Ctrl-C or SIGTERM; what was taken on is answered first.

    Args:
        app: The application.
        host: Address to listen on.
        port: Its port; 0 takes a free one.
        limits: On connections.
        ready: Called with the address and the server once requests are taken.
        backlog: Connections that wait to be accepted.
        graceful: Seconds for requests that were taken on, when it is stopped.

    Raises:
        UserError: The address cannot be listened on.
    """
    connections = Connections(limits)
    config = uvicorn.Config(
        app,
        # Parts that are extended here; uvloop accepts connections without the listening socket.
        http=partial(BoundedProtocol, connections=connections),  # type: ignore[arg-type]
        loop="asyncio",
        ws="none",
        log_config=None,  # its own would close the log files of this process
        log_level="error",  # a warning for each broken request would let anyone fill the log
        access_log=False,
        timeout_keep_alive=5,
        backlog=backlog,
        timeout_graceful_shutdown=graceful,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(Listener(family, socket.SOCK_STREAM)) as listener:
        listener.connections = connections
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError, TypeError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                "network",
                f"--host {host} --port {port}",
                f"cannot listen there ({reason}); choose another --port, or 0 for a free one",
            ) from error
        shown = f"[{host}]" if ":" in host else host
        server = Server(config)
        server.connections = connections
        address = f"http://{shown}:{listener.getsockname()[1]}"
        server.ready = lambda: ready(address, server)
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listener])
