# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The page and what it asks for: an image goes in, its label map and the classes' areas come back.

Images are held in memory while they are segmented and then dropped: nothing that is sent is
written, logged or kept, and nothing of it is run.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ...datasets.file_loading import decoded_by
from ...datasets.reader import LoadedImage
from ...errors import UserError
from ...evaluation.uncertainty import uncertainty_image
from ...inference import Segmentor
from ...io.cancel import cancellable
from ...io.decoding import DecodePool
from ...io.image_files import data_uri
from ..work import ClientGone, Refused, decode, supervise, until_ended

__all__ = ["Choice", "Limits", "create_app"]

_SHOWN_EDGE = 1600  # pixels of what the page shows; areas are those of the whole image
_PAGE = Path(__file__).with_name("page.html")


@dataclass
class Choice:
    """A model that the page calls ``name``, loaded when it is first chosen."""

    name: str
    load: Callable[[], Segmentor]
    _model: Segmentor | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def model(self) -> Segmentor:
        """The model; one thread loads, others wait for it."""
        with self._lock:
            if self._model is None:
                self._model = self.load()
            return self._model


@dataclass(frozen=True)
class Limits:
    """What the page takes."""

    bytes: int = 20 << 20  # of a file
    pixels: int = 16_000_000  # of an image, by its header, before it is decoded
    waiting: int = 4  # images that wait or are computed; one more is refused
    seconds: float = 30  # for a file to arrive


def _label_picture(labels: NDArray[np.integer]) -> Image.Image:
    """Indices as colours that browsers read back exactly; red the low byte, green the high."""
    low, high = labels & 255, labels >> 8
    return Image.fromarray(np.stack([low, high, np.zeros_like(low)], axis=2).astype(np.uint8))


def _answer(choice: Choice, image: LoadedImage, unsure: bool) -> dict[str, Any]:
    """Segment, and pack what the page draws; ``unsure`` asks for the uncertainty as well."""
    model = choice.model()
    if unsure:
        model.require_scores()
    begin = time.perf_counter()
    result = model(image)
    seconds = time.perf_counter() - begin
    height, width = result.size
    indices, names, palette = result.shown()  # of sets of classes where these overlap
    factor = min(1.0, _SHOWN_EDGE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = Image.fromarray(result.image).resize(size, Image.Resampling.BILINEAR)
    labels = _label_picture(indices).resize(size, Image.Resampling.NEAREST)
    counts = np.bincount(indices.reshape(-1), minlength=len(names)).tolist()
    areas = [
        {"index": i, "name": str(n), "colour": list(c), "pixels": k, "share": k / indices.size}
        for i, (n, c, k) in enumerate(zip(names, palette, counts, strict=False))
        if k
    ]
    more = {}
    if unsure:  # the model runs once more
        grey = uncertainty_image(result.uncertainty()).resize(size, Image.Resampling.BILINEAR)
        more["uncertainty"] = data_uri(grey, "PNG", compress_level=3)
    return {
        **more,
        "model": choice.name,
        "width": width,
        "height": height,
        "seconds": round(seconds, 3),
        "classes": len(names),
        "areas": sorted(areas, key=lambda a: -a["pixels"]),
        "image": data_uri(picture, "JPEG", quality=90),
        "labels": data_uri(labels, "PNG", compress_level=3),
    }


def _headers(nonce: str = "none") -> dict[str, str]:
    return {
        "Cache-Control": "no-store",
        "Content-Security-Policy": (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        ),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def create_app(
    choices: Sequence[Choice], hosts: Sequence[str] = ("*",), limits: Limits | None = None
) -> Starlette:
    """The application, for any ASGI server.

    ``GET /`` is the page, ``GET /models`` the names to choose from, ``POST /segment?model=NAME``
    takes an image file as the request's body; with ``&uncertainty=1`` the answer also holds
    ``uncertainty``, a grey PNG as
    :func:`~mmseg_resnest.evaluation.uncertainty.uncertainty_image` makes it.

    Args:
        choices: The models; at least one.
        hosts: The names under which the page may be asked for; any other is refused, so that no
            other page can reach this one through a name that it points here.
        limits: What the page takes.
    """
    bounds = limits or Limits()
    by_name = {choice.name: choice for choice in choices}
    pool = DecodePool(bounds.pixels)
    network = ThreadPoolExecutor(1, "network")  # one image at a time
    checks = ThreadPoolExecutor(1, "headers")
    busy = 0

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(pool.start)
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(pool.close)
            for threads in (network, checks):
                threads.shutdown(wait=False, cancel_futures=True)

    def leave() -> None:
        nonlocal busy
        busy -= 1

    async def work(choice: Choice, data: bytes, unsure: bool) -> dict[str, Any]:
        """From a file to what the page draws; cancelled, it ends at its next step."""
        loading = network.submit(choice.model)  # it says how its images are decoded
        model = await until_ended(loading, loading.cancel)
        how = decoded_by(model.reader)
        image = await decode(pool, checks, data, model.reader, how)
        del data
        stop = threading.Event()

        def compute() -> dict[str, Any]:
            with cancellable(stop.is_set):
                return _answer(choice, image, unsure)

        computing = network.submit(compute)

        def give_up() -> None:
            computing.cancel()
            stop.set()

        return await until_ended(computing, give_up)

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        text = _PAGE.read_text(encoding="utf-8").replace("{{nonce}}", nonce)
        return HTMLResponse(text, headers=_headers(nonce))

    async def models(request: Request) -> Response:
        names = {"models": list(by_name), "bytes": bounds.bytes}
        return JSONResponse(names, headers=_headers())

    async def segment(request: Request) -> Response:
        nonlocal busy
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise Refused(403, "only the page itself may send images")
        choice = by_name.get(request.query_params.get("model", ""))
        if choice is None:
            raise Refused(404, f"there is no such model; there are {', '.join(by_name)}")
        if busy >= bounds.waiting:
            raise Refused(429, "other images are waiting; try again in a moment")
        unsure = request.query_params.get("uncertainty") == "1"
        busy += 1
        try:
            answer = await supervise(
                request,
                lambda data: work(choice, data, unsure),
                bounds.bytes,
                bounds.seconds,
                None,
                leave,
            )
        except UserError as error:  # of loading the model, or one that gives labels only
            raise Refused(400, error.text) from error
        except ClientGone:
            return Response(status_code=499)
        return JSONResponse(answer, headers=_headers())

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        detail = f"{error.detail[:1].upper()}{error.detail[1:]}."
        return JSONResponse({"detail": detail}, error.status, _headers() | error.headers)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/models", models),
            Route("/segment", segment, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={Refused: refuse},
        lifespan=lifespan,
    )
