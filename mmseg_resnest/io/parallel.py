# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Calling a function on many files in forked processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import cv2
from tqdm import tqdm

from ..errors import UserError
from .processes import end_with_parent

_CHUNK = 8  # jobs that a process is given at a time

_T = TypeVar("_T")
_R = TypeVar("_R")


@contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """Lets OpenCV work on one thread in the processes that are forked in this context.

    A fork has OpenCV's thread pool without its threads: whatever uses the pool waits for ever,
    ``cv2.setNumThreads`` in the fork included.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def in_parallel(
    function: Callable[[_T], _R],
    jobs: Sequence[_T],
    processes: int,
    label: str,
    unit: str = "file",
    progress: bool = True,
) -> Iterator[_R]:
    """Yields a function's results for all jobs, in any order, with a bar on a terminal.

    ``function`` and its results are sent to other processes; 1 process is this one.

    Raises:
        UserError: A process died.
    """
    disable = None if progress else True
    bar = tqdm(desc=label, total=len(jobs), unit=unit, disable=disable, dynamic_ncols=True)
    chunks = [jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    processes = max(1, min(processes, len(chunks)))
    if processes == 1:
        with bar:
            for job in jobs:
                yield function(job)
                bar.update()
        return
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("fork"),
        initializer=end_with_parent,
        initargs=(os.getpid(),),
    )
    todo = iter(chunks)
    running: set[Future[list[_R]]] = set()
    try:
        with bar, opencv_on_one_thread():
            while True:
                # A short queue: all at once, a mistake in the first would wait for the last.
                while len(running) < 3 * processes and (chunk := next(todo, None)) is not None:
                    running.add(pool.submit(_each, function, chunk))
                if not running:
                    break
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    for result in future.result():
                        yield result
                        bar.update()
    except BrokenProcessPool as error:
        message = (
            "a process died, probably because memory ran out; run the command again with "
            "fewer --jobs or --workers"
        )
        raise UserError("memory", label, message) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _each(function: Callable[[_T], _R], jobs: Sequence[_T]) -> list[_R]:
    return [function(job) for job in jobs]
