# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Leaves the process of a run as it was before it.

MMEngine's runner, and what fits a run to its machine, set thread counts, environment variables,
random seeds, warning filters and the like for the whole process. A program that trains from
Python gets all of that back when the run ends.
"""

from __future__ import annotations

import contextlib
import os
import random
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
import torch.multiprocessing
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from .._stack import global_instances
from .logs import close_log_files, write_to_log_file
from .preemption import Preempted

__all__ = ["restored_process"]

# MMEngine keeps every instance of these by name for the whole process.
_GLOBALS: tuple[Any, ...] = (DefaultScope, MMLogger, MessageHub, Visualizer)


@contextlib.contextmanager
def restored_process() -> Iterator[None]:
    """Put back at the end what a run changes in the process.

    Environment variables, warning filters, thread counts of torch and OpenCV, the start method of
    processes, the limit of open files, deterministic modes, random states of Python, NumPy and
    torch, and MMEngine's default scope, loggers, message hubs and visualizers. An error is written
    to the run's log file with its traceback first.
    """
    before = _state()
    with warnings.catch_warnings():
        try:
            yield
        except (KeyboardInterrupt, Preempted):
            raise
        except Exception as error:
            write_to_log_file("".join(traceback.format_exception(error)))
            raise
        finally:
            _restore(before)


def _state() -> dict[str, Any]:
    return {
        "environ": dict(os.environ),
        "threads": torch.get_num_threads(),
        "opencv": cv2.getNumThreads(),
        "start_method": torch.multiprocessing.get_start_method(allow_none=True),
        "files": _open_files(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
        "globals": [dict(global_instances(kind)) for kind in _GLOBALS],
    }


def _restore(before: dict[str, Any]) -> None:
    for name in set(os.environ) - set(before["environ"]):
        del os.environ[name]
    os.environ.update(before["environ"])
    torch.set_num_threads(before["threads"])
    cv2.setNumThreads(before["opencv"])
    torch.multiprocessing.set_start_method(before["start_method"], force=True)
    _limit_open_files(before["files"])
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before["cudnn"]
    mode, warn_only = before["deterministic"]
    torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    python, numpy, own = before["random"]
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(own)
    for kind, instances in zip(_GLOBALS, before["globals"], strict=True):
        table = global_instances(kind)
        if kind is MMLogger:
            close_log_files([logger for name, logger in table.items() if name not in instances])
        # In place: MMEngine's classes hold the table, and its order says which one is current.
        table.clear()
        table.update(instances)


def _open_files() -> tuple[int, int] | None:
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def _limit_open_files(limits: tuple[int, int] | None) -> None:
    if limits is not None:
        import resource

        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
