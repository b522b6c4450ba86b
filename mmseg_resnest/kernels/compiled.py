# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Labels, confusion matrices, PNG files and colours by compiled loops (Numba), if installed.

The loops are compiled once on a machine, for some seconds, and kept by Numba: beside the source
file, or where that cannot be written in the user's cache folder (``NUMBA_CACHE_DIR`` names
another). Where neither can be written every process compiles them anew. Nothing is compiled, and
Numba is not imported, before the first use.

Work is split over threads that are made for each map and end with it, so that nothing has to
survive a fork, and several threads can ask at once. Results do not depend on the number of threads.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["WORTHWHILE_FROM", "Loops", "load_loops", "loaded_loops", "taps"]

#: Images from which on it pays to compile, or to load what is compiled.
WORTHWHILE_FROM = 50
# A thread costs some 0.1 ms, a map takes about 20 ms of work.
_MOST_THREADS = 8
# Pixels that are counted at a time by a thread.
_PIECE = 2**18
# Seconds after which compiling is told of; loading what was compiled takes less.
_LONG = 3.0
# Unit vectors that are resized at a time, to find the weights.
_LINES = 64

_lock = threading.Lock()
_tried = False
_loops: Loops | None = None


def _new_lock() -> None:
    """In a process that was forked while another thread was loading."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


class Loops:
    """The compiled loops. Made by :func:`load_loops`.

    Raises:
        Exception: There is no Numba, or it does not work: with what else is installed, or at all.
    """

    def __init__(self) -> None:
        from numba import config

        from . import loops

        if config.DISABLE_JIT:
            raise RuntimeError("NUMBA_DISABLE_JIT is set")
        self._label_bands = _compile(loops.label_bands, loops.LABEL_BANDS)
        self._count_pairs = _compile(loops.count_pairs, loops.COUNT_PAIRS)
        self._unfilter = _compile(loops.unfilter, loops.UNFILTER)
        self._change_colours = _compile(loops.change_colours, loops.CHANGE_COLOURS)
        self._band_count = loops.band_count

    def label_map(self, scores: Tensor, steps: Sequence[Any], labels: Tensor) -> None:
        """Writes what :func:`~mmseg_resnest.kernels.predict.plain_label_map` says of an image.

        Args:
            scores: (C, h, w) float32 on the CPU.
            steps: What is done to the scores, in order.
            labels: (H, W) int64, contiguous.
        """
        if not labels.numel():
            return
        down, down_weight, down_count = taps(scores.shape[1], tuple(steps), 0)
        across, across_weight, _ = taps(scores.shape[2], tuple(steps), 1)
        scores = scores.detach()
        values = scores.contiguous().numpy()
        turned = scores.permute(1, 2, 0).contiguous().numpy()
        out = labels.numpy()

        def band(number: int) -> None:
            self._label_bands(
                values,
                turned,
                down,
                down_weight,
                down_count,
                across,
                across_weight,
                out,
                number,
                number + 1,
            )

        _share(band, self._band_count(len(labels)))

    def unfilter(self, filtered: bytes, rows: NDArray[np.uint8], channels: int) -> bool:
        """Takes back the filters of the rows of a PNG file.

        Args:
            filtered: Of each row its filter's number, and ``width * channels`` bytes.
            rows: (H, width * channels), contiguous, written; three channels from RGB to BGR.
            channels: 1 or 3.

        Returns:
            False if a row's filter is none.
        """
        return bool(self._unfilter(np.frombuffer(filtered, np.uint8), rows, channels))

    def change_colours(
        self, planes: NDArray[np.uint8], turn: int, factor: float, contrast: float
    ) -> None:
        """Changes hue and saturation and converts to BGR, as OpenCV converts; then the contrast.

        Each product is cut to 255, and its fraction dropped.

        Args:
            planes: (3, H, W), contiguous: hue from 0 to 179, saturation and value; written: blue,
                green and red.
            turn: Added to the hue.
            factor: The saturation is multiplied by it; 0 or more.
            contrast: What comes out is multiplied by it; 0 or more.
        """
        self._change_colours(planes.reshape(3, -1), turn % 180, factor, contrast)

    def confusion_matrix(
        self, pred: Tensor, label: Tensor, num_classes: int, ignore_index: int
    ) -> Tensor | None:
        """The matrix of :func:`~mmseg_resnest.evaluation.confusion_matrix`.

        Args:
            pred: (n,) int64 on the CPU.
            label: (n,) int64 on the CPU.
            num_classes: Number of classes C.
            ignore_index: The label left out.

        Returns:
            int64 (C, C); None if a prediction or a label is out of range.
        """
        predicted, labelled = pred.contiguous().numpy(), label.contiguous().numpy()
        total = np.zeros(num_classes * num_classes, np.int64)
        step = max(_PIECE, 4 * total.size)
        adding = threading.Lock()
        wrong = 0

        def piece(number: int) -> None:
            nonlocal wrong, total
            part = slice(number * step, (number + 1) * step)
            counts = np.zeros_like(total)
            bad = self._count_pairs(
                predicted[part], labelled[part], num_classes, ignore_index, counts
            )
            with adding:
                total += counts
                wrong += bad

        _share(piece, -(-pred.numel() // step))
        return None if wrong else torch.from_numpy(total).view(num_classes, num_classes)


def _compile(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """A loop for the types of its signature; from Numba's cache, if it is there."""
    from numba import njit

    from .loops import OPTIONS

    try:
        return njit(signature, nogil=True, cache=True, **OPTIONS)(function)
    except Exception:  # no place for the cache, a full disk, a broken file: Numba says many things
        return njit(signature, nogil=True, **OPTIONS)(function)


def load_loops() -> Loops | None:
    """The compiled loops: compiled now, or read from Numba's cache, at the first call.

    Returns:
        None where Numba cannot be used. That is said once, in one line.
    """
    global _loops, _tried
    with _lock:
        if not _tried:
            waiting = threading.Timer(_LONG, _say_compiling)
            waiting.daemon = True
            try:
                importlib.import_module("numba")  # which is no compiling, however long it takes
                waiting.start()
                _loops = Loops()
            except Exception as error:  # versions that do not fit end in errors of all kinds
                if isinstance(error, ModuleNotFoundError) and error.name == "numba":
                    reason = "Numba is not installed (pip install 'mmseg-resnest[fast]')"
                else:
                    reason = f"Numba cannot be used ({' '.join(str(error).split())})"
                print_log(
                    f"torch makes labels and OpenCV reads PNG files, which takes longer: {reason}",
                    logger="current",
                    level=logging.WARNING,
                )
            finally:
                waiting.cancel()
            _tried = True
    return _loops


def _say_compiling() -> None:
    text = "compiling loops, once on this machine: some ten seconds"
    print(text, file=sys.stderr, flush=True)


def loaded_loops() -> Loops | None:
    """The compiled loops if something in this process has loaded them; nothing is loaded now."""
    return _loops


@functools.lru_cache(maxsize=64)
def taps(
    length: int, steps: tuple[Any, ...], axis: int
) -> tuple[NDArray[np.uint64], NDArray[np.float32], NDArray[np.int64]]:
    """What each pixel along one axis is made from.

    Args:
        length: Places along the axis.
        steps: Steps of :mod:`mmseg_resnest.kernels.predict`.
        axis: 0 is the height.

    Returns:
        Places (K, size), their weights (K, size), and the number of them for each pixel (size,).
        Beyond that number the last place is repeated, with weight 0.
    """
    places, pixels, weights = [], [], []
    size = 0
    for first in range(0, length, _LINES):
        # What the steps make of unit vectors: the very weights that they use.
        lines = torch.zeros(min(_LINES, length - first), length)
        lines[:, first:].fill_diagonal_(1)
        for step in steps:
            lines = step.along(axis, lines)
        size = lines.shape[1]
        place, pixel = lines.nonzero(as_tuple=True)
        places.append(place + first)
        pixels.append(pixel)
        weights.append(lines[place, pixel])
    pixel, order = torch.cat(pixels).sort(stable=True)
    place, weight = torch.cat(places)[order], torch.cat(weights)[order]
    count = torch.bincount(pixel, minlength=size)
    begin = count.cumsum(0) - count
    k = torch.arange(int(count.max()))[:, None]
    index = begin + torch.minimum(k, count - 1)
    all_places = place[index].numpy().astype(np.uint64)
    all_weights = torch.where(k < count, weight[index], 0.0).numpy()
    return (
        np.ascontiguousarray(all_places),
        np.ascontiguousarray(all_weights, dtype=np.float32),
        count.numpy(),
    )


def _share(work: Callable[[int], None], parts: int) -> None:
    """Does ``work`` for every number below ``parts``, in as many threads as torch uses."""
    numbers = deque(range(parts))

    def some() -> None:
        while True:
            try:
                number = numbers.popleft()
            except IndexError:
                return
            work(number)

    others = min(torch.get_num_threads(), parts, _MOST_THREADS) - 1
    if others < 1:
        some()
        return
    with ThreadPoolExecutor(others) as pool:
        running = [pool.submit(some) for _ in range(others)]
        some()
        for each in running:
            each.result()
