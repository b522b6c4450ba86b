# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""A service on a socket of this machine, in a thread, and a model that waits when told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import uvicorn

from mmseg_resnest.inference import Segmentation
from mmseg_resnest.serving import Limits, create_app


class Gate:
    """A model that waits for leave: every pixel is of class 1.

    Attributes:
        open: While set, it does not wait.
        entered: Released once for each batch that it starts.
        batches: Sizes of the batches so far.
    """

    classes = ["ground", "sky"]
    palette = [[0, 0, 0], [10, 20, 30]]

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[int] = []
        self.fault: Exception | None = None

    def __call__(self, images: list[np.ndarray]) -> list[Segmentation]:
        self.batches.append(len(images))
        self.entered.release()
        assert self.open.wait(20)
        if self.fault is not None:
            raise self.fault
        return [
            Segmentation(np.ones(i.shape[:2], np.uint8), i, self.classes, self.palette)
            for i in images
        ]


@contextlib.contextmanager
def running(model: Any, limits: Limits) -> Iterator[httpx.Client]:
    """A client of a service that runs meanwhile."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            create_app(model, limits),
            log_config=None,
            log_level="error",
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            transport = httpx.HTTPTransport(retries=20)
            with httpx.Client(base_url=address, timeout=30, transport=transport) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
