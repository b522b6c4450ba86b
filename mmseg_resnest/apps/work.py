# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Work of a request that ends when nobody waits for it, and counts until it has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["ClientGone", "TooLong", "supervise", "until_ended"]

T = TypeVar("T")


class TooLong(Exception):
    """The result did not come in time."""


class ClientGone(Exception):
    """The client closed the connection before it had its answer."""


async def until_ended(future: Future[T], give_up: Callable[[], object]) -> T:
    """The result of work in a thread; who is cancelled meanwhile returns when it has ended.

    Args:
        future: The work.
        give_up: Called when nobody waits for the result any more; makes the work end soon.
    """
    waiter = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waiter)
    except asyncio.CancelledError:
        if waiter.cancelled():
            raise
        give_up()
        while not waiter.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([waiter])
        if not waiter.cancelled():
            waiter.exception()  # seen, and of no interest
        raise


async def supervise(
    work: Coroutine[Any, Any, T],
    seconds: float | None,
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    ended: Callable[[], object],
) -> T:
    """Wait for a request's work as long as its client waits and its time lasts.

    Args:
        work: It is cancelled when nobody waits for it any more.
        seconds: The most to wait.
        receive: Of ASGI; the body has been read.
        ended: Called once when the work has ended, which may be after this has raised.

    Raises:
        TooLong: Time is up.
        ClientGone: The client left.
    """
    task = asyncio.create_task(work)

    def note(task: asyncio.Task[T]) -> None:
        ended()
        if not task.cancelled():
            task.exception()  # seen: nobody may be left to see it

    task.add_done_callback(note)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone if gone.done() else TooLong
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
