# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The page on a socket of this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Any

from ..connections import ConnectionLimits
from ..server import Server, run
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


def run_app(
    choices: Sequence[Choice],
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
    ready: Callable[[str, Server], Any] = lambda address, server: None,
) -> None:
    """Show the page until Ctrl-C; the port 0 takes a free one.

    ``ready`` is called with the page's address and the server, whose ``should_exit`` ends it.

    Raises:
        UserError: The address cannot be listened on, or the process may open too few files.
    """
    names = _LOCAL_NAMES if is_local(host) else ("*",)
    bounds = limits or Limits()
    run(
        create_app(choices, names, bounds),
        host,
        port,
        ConnectionLimits(total=256, per_client=64, body=bounds.seconds + 10),
        ready,
    )
