# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""The service: an image in a request; a label map, an overlay or areas in the answer."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections import Counter as Count
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from torch import nn

from ...datasets.file_loading import FileLoading, decoded_by
from ...datasets.reader import ImageReader, LoadedImage
from ...errors import UserError
from ...inference import Segmentation, Segmentor
from ...inference.result import IGNORE, class_indices
from ...io.cancel import raise_if_cancelled
from ...io.decoding import DecodePool
from ...io.image_files import JPEG_EDGE, Decoding
from ...version import __version__
from ..work import (
    ClientGone,
    Refused,
    TooLong,
    decode,
    supervise,
    unfit,
    until_ended,
)
from .batcher import Batcher, Busy
from .forms import FIELD, image_in
from .limits import Limits

__all__ = ["create_app"]

_MEDIA = ("application/octet-stream", "image/jpeg", "image/png", "image/webp", "image/tiff")
_DISCARD_SECONDS = 1.0
_FILE = {"type": "string", "format": "binary"}
_BINARY = {"schema": _FILE}
_FORM = {
    "schema": {
        "type": "object",
        "properties": {FIELD: _FILE},
        "required": [FIELD],
        "additionalProperties": False,
    }
}


#: What ``/predict`` answers with.
Output = Literal["labels", "overlay", "areas"]


class Problem(BaseModel):
    """Why a request was not served."""

    detail: str


class Health(BaseModel):
    """Whether the service takes requests, and what it has to do."""

    status: str
    version: str
    waiting: int
    limit: int


class ModelInfo(BaseModel):
    """The model, and what the service takes on."""

    classes: list[str]
    palette: list[list[int]]
    multilabel: bool
    max_bytes: int
    max_pixels: int
    max_waiting: int
    max_seconds: float
    max_batch: int


class ClassArea(BaseModel):
    """How much of an image a class covers."""

    name: str
    pixels: int
    share: float


class Areas(BaseModel):
    """The classes of an image."""

    height: int
    width: int
    areas: list[ClassArea]


class _Metrics:
    """What ``/metrics`` tells; a registry for each application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "segmentation_requests", "Requests to /predict, by status", ["status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "segmentation_request_seconds", "From a request to its answer, served ones",
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )  # fmt: skip
        self.batches = Histogram(
            "segmentation_batch_images", "Images that were segmented together; those of one size "
            "go through the network together",
            registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64),
        )  # fmt: skip
        self.pixels = Counter(
            "segmentation_pixels", "Pixels of the images served", registry=self.registry
        )
        self.waiting = Gauge(
            "segmentation_waiting", "Requests that are read, wait or are computed",
            registry=self.registry,
        )  # fmt: skip


def create_app(model: Segmentor, limits: Limits | None = None) -> FastAPI:
    """The application, for any ASGI server.

    Endpoints: ``POST /predict`` (an image file as the body, or as the field ``image`` of a form),
    ``GET /model``, ``GET /health``,
    ``GET /metrics`` (Prometheus' text format), ``GET /openapi.json`` and ``GET /docs``. Nothing
    that is sent is kept, or written but for loaders that read files, while they do.

    Args:
        model: What segments; one thread calls it.
        limits: What the service takes on.

    Raises:
        UserError: The model's config has a loader that a service cannot use.
    """
    how = decoded_by(model.reader)
    bounds = limits or Limits()
    metrics = _Metrics()
    batcher = Batcher(
        lambda images: model(list(images)), bounds.batch, bounds.gather, metrics.batches.observe
    )
    state = _State(bounds, batcher, metrics, model.reader, how)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        hooks = end_between_blocks(model)
        try:
            await anyio.to_thread.run_sync(state.pool.start, how)
            yield
        finally:
            await anyio.to_thread.run_sync(batcher.close)
            await anyio.to_thread.run_sync(state.close)
            for hook in hooks:
                hook.remove()

    app = FastAPI(
        title="mmseg-resnest",
        version=__version__,
        description="Semantic segmentation of images.",
        lifespan=lifespan,
    )

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status, error.headers)

    @app.get("/health", response_model=Health, summary="Whether the service takes requests")
    async def health() -> Health:
        return Health(status="ok", version=__version__, waiting=state.waiting, limit=bounds.waiting)

    @app.get("/model", response_model=ModelInfo, summary="Classes, colours and limits")
    async def info() -> ModelInfo:
        return ModelInfo(
            classes=list(model.classes),
            palette=[list(colour) for colour in model.palette],
            multilabel=model.multilabel,
            max_bytes=bounds.bytes,
            max_pixels=bounds.pixels,
            max_waiting=bounds.waiting,
            max_seconds=bounds.seconds,
            max_batch=bounds.batch,
        )

    @app.get(
        "/metrics",
        summary="Counters in Prometheus' text format",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def tell() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    def problem(text: str) -> dict[str, Any]:
        return {"model": Problem, "description": text}

    @app.post(
        "/predict",
        summary="Segment an image",
        response_class=Response,
        responses={
            200: {
                "description": "A palette PNG whose pixels are class indices, or a grey one whose "
                "bits are classes that overlap; a JPEG; or areas",
                "content": {
                    "image/png": _BINARY,
                    "image/jpeg": _BINARY,
                    "application/json": {"schema": Areas.model_json_schema()},
                },
            },
            400: problem(
                "The body is not an image, or a form without one, the image takes long to decode "
                "or the model cannot segment it, or there is no such class"
            ),
            408: problem("The body did not arrive in time"),
            413: problem("The body has too many bytes, or the image too many pixels for memory"),
            429: problem("Too many requests at a time; try again after Retry-After seconds"),
            500: problem("A fault of the service"),
            503: problem("The service is being stopped"),
            504: problem("The result did not come in time"),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "An image file: JPEG, PNG, WebP, TIFF, BMP, ...",
                "content": {**dict.fromkeys(_MEDIA, _BINARY), "multipart/form-data": _FORM},
            }
        },
    )
    async def predict(
        request: Request,
        output: Annotated[
            Output, Query(description="a label map (PNG), an overlay (JPEG) or areas (JSON)")
        ] = "labels",
        opacity: Annotated[float, Query(ge=0, le=1, description="of the overlay")] = 0.5,
        classes: Annotated[
            list[str] | None,
            Query(description="names, with commas between them: the answer is of these alone"),
        ] = None,
    ) -> Response:
        began = time.monotonic()
        status = 500
        try:
            names = _known(classes, model.classes)
            draw = partial(_answer, output=output, opacity=opacity, classes=names)
            pixels, response = await state.serve(request, draw)
            status = 200
            metrics.seconds.observe(time.monotonic() - began)
            metrics.pixels.inc(pixels)
            return response
        except Refused as refused:
            status = refused.status
            if status in (413, 429):
                await _discard(request)
            raise
        finally:
            metrics.requests.labels(str(status)).inc()

    return app


def _known(values: list[str] | None, classes: list[str]) -> list[str] | None:
    """The names in values of a query; a comma separates two unless a class is called so."""
    names: list[str] = []
    for value in values or ():
        names += [value] if value in classes else map(str.strip, value.split(","))
    try:
        class_indices(names, classes)
    except UserError as error:
        raise Refused(400, error.text) from error
    return names or None


def end_between_blocks(model: Any) -> list[Any]:
    """Has the network end between two of its blocks when nobody waits for its result."""
    network = getattr(model, "model", None)
    if not isinstance(network, nn.Module):
        return []
    # Not single layers: those of normalisation have a faster way without hooks.
    return [
        block.register_forward_pre_hook(lambda *_: raise_if_cancelled())
        for block in network.modules()
        if any(True for _ in block.children())
    ]


class _State:
    """What requests share."""

    def __init__(
        self,
        limits: Limits,
        batcher: Batcher,
        metrics: _Metrics,
        reader: ImageReader,
        how: Decoding | FileLoading,
    ) -> None:
        self.limits, self.batcher, self.metrics = limits, batcher, metrics
        self.reader, self.how = reader, how
        self.pool = DecodePool(limits.pixels)
        self.threads = ThreadPoolExecutor(4, "requests")  # for what takes seconds at most
        self.waiting = 0
        self.clients: Count[str] = Count()

    def close(self) -> None:
        self.pool.close()
        self.threads.shutdown()

    async def serve(
        self, request: Request, draw: Callable[[Segmentation], Response]
    ) -> tuple[int, Response]:
        """Serve one request; returns the pixels of its image, and what ``draw`` makes of it.

        Its place is taken before a byte of its body is read, until its work has ended.
        """
        client = request.client.host if request.client else ""
        kind = request.headers.get("content-type", "")
        encoding = request.headers.get("content-encoding", "")
        share = self.limits.waiting - self.limits.waiting // 4
        taken = self.clients[client]
        if self.waiting >= self.limits.waiting or taken >= share:
            number = self.waiting if self.waiting >= self.limits.waiting else taken
            raise Refused(429, f"{number} requests are being served; try again later", retry=1.0)
        self._count(client, 1)
        doing = ["decoding"]
        limit = self.limits.seconds
        try:
            return await supervise(
                request,
                lambda body: self._work(image_in(body, kind, encoding), doing, draw),
                self.limits.bytes,
                limit,
                limit,
                lambda: self._count(client, -1),
            )
        except TooLong:
            raise Refused(504, f"{doing[0]} took longer than {limit:g} seconds") from None
        except ClientGone:
            raise Refused(499, "the client left before it had its answer") from None

    def _count(self, client: str, change: int) -> None:
        self.waiting += change
        self.metrics.waiting.set(self.waiting)
        self.clients[client] += change
        if not self.clients[client]:
            del self.clients[client]

    async def _work(
        self, body: bytes, doing: list[str], draw: Callable[[Segmentation], Response]
    ) -> tuple[int, Response]:
        """From a file to an answer; ``doing`` receives each step."""
        image = await decode(self.pool, self.threads, body, self.reader, self.how)
        del body
        doing[0] = "segmenting"
        result = await self._segment(image)
        doing[0] = "drawing"
        drawing = self.threads.submit(draw, result)
        return image.size[0] * image.size[1], await until_ended(drawing, drawing.cancel)

    async def _segment(self, image: LoadedImage) -> Segmentation:
        try:
            future = self.batcher.submit(image)
        except Busy as busy:
            raise Refused(503, str(busy), retry=5.0) from busy
        try:
            return await until_ended(future, future.give_up)
        except UserError as error:
            raise unfit(error) from error
        except Exception as error:
            raise Refused(500, f"segmenting failed ({type(error).__name__})") from error


async def _discard(request: Request) -> None:
    """Read on for a moment without keeping anything.

    A connection that is closed while its client still sends is reset, and the answer with it.
    """
    if "expect" in request.headers:
        return  # this client waits to be asked for the body

    async def read() -> None:
        async for _ in request.stream():
            pass

    with contextlib.suppress(asyncio.TimeoutError, ClientDisconnect, RuntimeError):
        await asyncio.wait_for(read(), _DISCARD_SECONDS)


def _answer(
    result: Segmentation, output: Output, opacity: float, classes: list[str] | None
) -> Response:
    if classes is not None:
        result = result.only(classes)
    if output == "areas":
        height, width = result.size
        areas = [
            ClassArea(name=name, **area._asdict())
            for name, area in result.areas().items()
            if area.pixels
        ]
        return Response(
            Areas(height=height, width=width, areas=areas).model_dump_json(),
            media_type="application/json",
        )
    if len(result.palette) > IGNORE:
        said = f"pictures hold at most {IGNORE} classes, not {len(result.palette)}; ask for areas"
        raise Refused(400, said)
    data = io.BytesIO()
    if output == "overlay":
        if max(result.size) > JPEG_EDGE:
            said = f"an overlay is a JPEG, of at most {JPEG_EDGE:,} pixels along an edge"
            raise Refused(400, f"{said}; ask for labels or areas")
        result.overlay(opacity).save(data, "JPEG", quality=90)
        return Response(data.getvalue(), media_type="image/jpeg")
    result.label_image().save(data, "PNG")
    return Response(data.getvalue(), media_type="image/png")
