# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A service on a socket of this machine, in a thread, and a model that waits when told to."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from small_models import blobs

from mmseg_resnest.apps.connections import ConnectionLimits
from mmseg_resnest.apps.server import Server, run
from mmseg_resnest.apps.serving import Limits, create_app
from mmseg_resnest.datasets.reader import ImageInput, ImageReader
from mmseg_resnest.inference import Segmentation


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """An image file of pixels."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


PHOTO = blobs(64, 80, 1)
PNG = encoded(PHOTO)


def post(client: httpx.Client, **options: Any) -> httpx.Response:
    """The answer to :data:`PHOTO`."""
    return client.post("/predict", content=PNG, **options)


def waiting(client: httpx.Client) -> int:
    """How many images wait."""
    return int(client.get("/health").json()["waiting"])


class Gate:
    """A model that waits for leave: every pixel is of class 1.

    Attributes:
        open: While set, it does not wait.
        entered: Released once for each batch that it starts.
        batches: Sizes of the batches so far.
    """

    classes = ["ground", "sky"]
    palette = [[0, 0, 0], [10, 20, 30]]
    reader = ImageReader()

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[int] = []
        self.fault: Exception | None = None

    def __call__(self, images: list[ImageInput]) -> list[Segmentation]:
        self.batches.append(len(images))
        self.entered.release()
        assert self.open.wait(120)
        if self.fault is not None:
            raise self.fault
        return [
            Segmentation(np.ones(i.size, np.uint8), i.picture, self.classes, self.palette)
            for i in map(self.reader.read, images)
        ]


@contextlib.contextmanager
def running(
    model: Any, limits: Limits, connections: ConnectionLimits | None = None
) -> Iterator[httpx.Client]:
    """A client of a service that runs meanwhile."""
    told: queue.Queue[tuple[str, Server]] = queue.Queue()
    bounds = connections or ConnectionLimits()

    def work() -> None:
        app = create_app(model, limits)
        run(app, "127.0.0.1", 0, bounds, lambda *ready: told.put(ready), graceful=5)

    thread = threading.Thread(target=work)
    thread.start()
    address, server = told.get(timeout=60)
    try:
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(base_url=address, timeout=30, transport=transport) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
