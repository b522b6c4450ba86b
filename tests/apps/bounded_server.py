# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A server in a process that may open few files: ``bounded_server.py FILES LIMITS``."""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from mmseg_resnest.apps.connections import ConnectionLimits
from mmseg_resnest.apps.server import run

taken: list[dict[str, Any]] = []


def may_open(files: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, resource.getrlimit(7)[1]))


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers without reading the body; ``/large`` with 64 MiB, ``/taken`` with how many of those
    were taken by their clients, or dropped."""
    if scope["type"] == "lifespan":
        for what in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{what}.complete"})
        return
    if scope["path"] == "/no-files":  # from now on nothing can be opened
        may_open(3)
    if scope["path"] == "/files":
        may_open(int(sys.argv[1]))
    if scope["path"] == "/read":
        while (await receive()).get("more_body"):
            pass
    body = bytes(64 << 20) if scope["path"] == "/large" else str(len(taken)).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})  # waits for the client
    if scope["path"] == "/large":
        taken.append(scope)


if __name__ == "__main__":
    may_open(int(sys.argv[1]))
    limits = ConnectionLimits(**json.loads(sys.argv[2]))
    run(app, "127.0.0.1", 0, limits, lambda address, server: print(address, flush=True))
