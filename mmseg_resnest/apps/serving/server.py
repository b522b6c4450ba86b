# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The application on a socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...inference import Segmentor
from ..connections import ConnectionLimits
from ..server import run
from .app import create_app
from .limits import Limits

__all__ = ["serve"]


def serve(
    model: Segmentor,
    limits: Limits,
    host: str,
    port: int,
    ready: Callable[[str], Any],
    per_client: int = 128,
) -> None:
    """Serve until Ctrl-C or SIGTERM; requests that were taken on are answered first.

    ``ready`` is called with the address; ``per_client`` is that of :class:`ConnectionLimits`.

    Raises:
        UserError: The address cannot be listened on, or the process may open too few files.
    """
    run(
        create_app(model, limits),
        host,
        port,
        # The application answers a body that comes too late before its connection is closed.
        ConnectionLimits(per_client=per_client, body=limits.seconds + 10),
        lambda address, server: ready(address),
        # Requests beyond the limit are refused at once.
        backlog=max(128, 2 * limits.waiting),
        graceful=int(limits.seconds) + 1,
    )
