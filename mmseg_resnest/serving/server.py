# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The application on a socket."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from ..errors import UserError
from ..inference import Segmentor
from .app import create_app
from .limits import Limits

__all__ = ["serve"]


class _Server(uvicorn.Server):
    """Tells when it takes requests."""

    ready: Callable[[], None] = staticmethod(lambda: None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()


def serve(
    model: Segmentor,
    limits: Limits,
    host: str,
    port: int,
    ready: Callable[[str], Any] = lambda address: None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; requests that were taken on are answered first.

    Args:
        model: The model.
        limits: What is taken on.
        host: Address to listen on.
        port: Its port; 0 takes a free one.
        ready: Told the address once requests are taken.

    Raises:
        UserError: The address cannot be listened on.
    """
    config = uvicorn.Config(
        create_app(model, limits),
        host=host,
        port=port,
        log_config=None,  # its own would close the log files of this process
        log_level="warning",
        access_log=False,
        timeout_keep_alive=5,
        # Connections beyond those that can be served are told so at once, by uvicorn itself.
        backlog=max(128, 2 * limits.waiting),
        timeout_graceful_shutdown=int(limits.seconds) + 1,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UserError(
                f"--host {host} --port {port}: cannot be listened on ({error.strerror})"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        server = _Server(config)
        server.ready = lambda: ready(f"http://{shown}:{listener.getsockname()[1]}")
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listener])
