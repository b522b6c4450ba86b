# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""One thread that computes; images that arrive together go through the network together."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ...datasets.reader import LoadedImage
from ...inference import Segmentation
from ...io.cancel import Cancelled, cancellable

__all__ = ["Batcher", "Busy", "Waiting"]


class Busy(Exception):
    """The service has as much to do as it takes on."""


class Waiting(Future[Segmentation]):
    """The result of an image that was submitted."""

    given_up = False

    def give_up(self) -> None:
        """Nobody waits for it: it is not computed, or ends when nobody waits for its batch."""
        if not self.cancel():
            self.given_up = True


class Batcher:
    """Segments images from many threads in one; where a batch fails, each image is tried alone.

    ``model`` maps images to results; a batch has at most ``batch`` images, the first of which waits
    ``gather`` seconds for others; ``seen`` receives its size.
    """

    def __init__(
        self,
        model: Callable[[Sequence[LoadedImage]], list[Segmentation]],
        batch: int,
        gather: float,
        seen: Callable[[int], Any] = lambda size: None,
    ) -> None:
        self._model, self._batch, self._gather, self._seen = model, batch, gather, seen
        self._queue: queue.Queue[tuple[LoadedImage, Waiting] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._closed = False

    def start(self) -> None:
        """Start computing."""
        self._thread.start()

    def submit(self, image: LoadedImage) -> Waiting:
        """Queue an image. One that is given up before its turn costs nothing.

        Raises:
            Busy: It is being closed.
        """
        if self._closed:
            raise Busy("the service is being stopped")
        future = Waiting()
        self._queue.put((image, future))
        return future

    def close(self) -> None:
        """Finish what is queued, then stop."""
        self._closed = True
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        last = False
        while not last:
            item = self._queue.get()
            if item is None:
                return
            items = [item]
            deadline = time.monotonic() + self._gather
            while len(items) < self._batch:
                try:
                    item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                if item is None:
                    last = True
                    break
                items.append(item)
            # Those whose client has been answered already are not computed.
            self._run([i for i in items if i[1].set_running_or_notify_cancel()])
            del item, items  # or the last images would stay while the thread waits

    def _run(self, items: list[tuple[LoadedImage, Waiting]]) -> None:
        if not items:
            return
        self._seen(len(items))
        try:
            with cancellable(lambda: all(future.given_up for _, future in items)):
                results = self._model([image for image, _ in items])
        except BaseException as error:  # whoever waits must hear of it, and the thread must go on
            if len(items) == 1 or isinstance(error, Cancelled):
                for _, future in items:
                    future.set_exception(error)
                return
        else:
            for (_, future), result in zip(items, results, strict=True):
                future.set_result(result)
            return
        for item in items:  # an image that fails does not cost the others theirs
            self._run([item])
