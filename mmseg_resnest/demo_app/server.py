# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The page on a socket of this machine."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from ..errors import UserError
from .app import Choice, Limits, create_app

__all__ = ["is_local", "run_app"]

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """Tells when it takes requests."""

    ready: Callable[[], Any]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()


def run_app(
    choices: Sequence[Choice],
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
    ready: Callable[[str, uvicorn.Server], Any] = lambda address, server: None,
) -> None:
    """Show the page until Ctrl-C.

    Args:
        choices: The models.
        host: The address to listen on.
        port: Its port; 0 takes a free one.
        limits: What the page takes.
        ready: Told the page's address, and the server, whose ``should_exit`` ends it.

    Raises:
        UserError: The address cannot be listened on.
    """
    names = _LOCAL_NAMES if is_local(host) else ("*",)
    config = uvicorn.Config(
        create_app(choices, names, limits),
        log_config=None,  # its own would close the log files of this process
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"--host {host} --port {port}: cannot be listened on ({reason}); choose another "
                "--port, or 0 for a free one"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        server = _Server(config)
        address = f"http://{shown}:{listener.getsockname()[1]}"
        server.ready = lambda: ready(address, server)
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listener])
