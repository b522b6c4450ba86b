# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What both services do with a request: its body within limits, decoding, work that can end early.

A request's place is taken until its work has ended, also when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from ..datasets.file_loading import FileLoading, received
from ..datasets.reader import ImageReader, LoadedImage
from ..errors import UserError
from ..io.decoding import DecodePool, ImageTooLarge
from ..io.image_files import Decoding

__all__ = [
    "ClientGone", "Refused", "TooLong", "decode", "supervise", "unfit",
    "until_ended",
]  # fmt: skip

T = TypeVar("T")


class Refused(Exception):
    """A request that is answered with an HTTP error; ``retry`` is in seconds."""

    def __init__(self, status: int, detail: str, retry: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry = status, detail, retry

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer; those whose body is not read to its end close the connection."""
        headers = {} if self.retry is None else {"Retry-After": str(max(1, round(self.retry)))}
        return headers | ({"Connection": "close"} if self.status in (403, 408, 413, 429) else {})


class TooLong(Exception):
    """The result did not come in time."""


class ClientGone(Exception):
    """The client closed the connection before it had its answer."""


async def _read_body(request: Request, most: int) -> bytes:
    too_large = Refused(413, f"the image has more than {most / (1 << 20):.3g} MiB")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > most:
                raise too_large
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(data)


async def decode(
    pool: DecodePool,
    threads: ThreadPoolExecutor,
    data: bytes,
    reader: ImageReader,
    how: Decoding | FileLoading,
) -> LoadedImage:
    """An image file as a model's reader loads it; ``how`` is its :func:`.decoded_by`.

    Its header is checked in ``threads``, it is decoded in ``pool``.

    Raises:
        Refused: The image is too large (413), or cannot be decoded (400).
    """
    try:
        checking = threads.submit(pool.check, data, "in the body", how)
        header = await until_ended(checking, checking.cancel)
        decoding = pool.submit(data, header, "in the body", how)
        return received(reader, await until_ended(decoding, lambda: pool.give_up(decoding)))
    except ImageTooLarge as error:
        raise Refused(413, error.text) from error
    except UserError as error:
        raise Refused(400, error.text) from error


def unfit(error: UserError) -> Refused:
    """The answer to an image that the model cannot segment; files of this machine are not named."""
    return Refused(413 if error.code == "memory" else 400, error.message)


async def until_ended(future: Future[T], give_up: Callable[[], object]) -> T:
    """The result of work in a thread; who is cancelled meanwhile returns when it has ended.

    ``give_up`` is called when nobody waits for the result any more; it makes the work end soon.
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
    request: Request,
    work: Callable[[bytes], Coroutine[Any, Any, T]],
    most: int,
    body_seconds: float,
    seconds: float | None,
    ended: Callable[[], object],
) -> T:
    """Read a request's body, then wait for its work as long as its client waits.

    Args:
        request: Its body has not been read.
        work: From the body to the answer; cancelled when nobody waits for it any more.
        most: Bytes of the body.
        body_seconds: For the body to arrive.
        seconds: From now to the answer, at most.
        ended: Called once when the work has ended, which may be after this has raised.

    Raises:
        Refused: The body is too large (413) or came too late (408).
        TooLong: Time is up.
        ClientGone: The client left.
    """
    began = time.monotonic()
    try:
        # Not in a variable, or the body would stay until the answer is sent.
        task = asyncio.create_task(
            work(await asyncio.wait_for(_read_body(request, most), body_seconds))
        )
    except BaseException as error:
        ended()
        if isinstance(error, asyncio.TimeoutError):
            late = f"the image did not arrive within {body_seconds:g} seconds"
            raise Refused(408, late) from None
        raise

    def note(task: asyncio.Task[T]) -> None:
        ended()
        if not task.cancelled():
            task.exception()  # seen: nobody may be left to see it

    task.add_done_callback(note)
    gone = asyncio.create_task(_disconnected(request.receive))
    left = None if seconds is None else max(0.0, began + seconds - time.monotonic())
    try:
        await asyncio.wait({task, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone if gone.done() else TooLong
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
