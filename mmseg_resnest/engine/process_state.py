# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Leaves the process of a run as it was before it."""

from __future__ import annotations

import contextlib
import os
import random
import resource
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

# MMEngine keeps every instance of these by name for the whole process.
_GLOBALS: tuple[Any, ...] = (DefaultScope, MMLogger, MessageHub, Visualizer)


@contextlib.contextmanager
def restored_process() -> Iterator[None]:
    """Put back at the end what MMEngine's runner and a run change in the process.

    Environment variables, warning filters, thread counts of torch and OpenCV, the start method of
    processes, the limit of open files, deterministic modes, random states of Python, NumPy and
    torch, and MMEngine's default scope, loggers, message hubs and visualizers. An error is written
    to the run's log file with its traceback first.
    """
    with warnings.catch_warnings(), contextlib.ExitStack() as restore:
        restore.callback(_restore_environment, dict(os.environ))
        restore.callback(torch.set_num_threads, torch.get_num_threads())
        restore.callback(cv2.setNumThreads, cv2.getNumThreads())
        method = torch.multiprocessing.get_start_method(allow_none=True)
        restore.callback(torch.multiprocessing.set_start_method, method, force=True)
        restore.callback(_limit_open_files, resource.getrlimit(resource.RLIMIT_NOFILE))
        for name in ("benchmark", "deterministic"):
            before = getattr(torch.backends.cudnn, name)
            restore.callback(setattr, torch.backends.cudnn, name, before)
        restore.callback(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        restore.callback(random.setstate, random.getstate())
        restore.callback(np.random.set_state, np.random.get_state())
        restore.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_initialized():
            restore.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        for kind in _GLOBALS:
            restore.callback(_restore_instances, kind, dict(global_instances(kind)))
        try:
            yield
        except (KeyboardInterrupt, Preempted):
            raise
        except Exception as error:
            write_to_log_file("".join(traceback.format_exception(error)))
            raise


def _restore_environment(before: dict[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


def _limit_open_files(limits: tuple[int, int]) -> None:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _restore_instances(kind: Any, before: dict[str, Any]) -> None:
    table = global_instances(kind)
    if kind is MMLogger:
        close_log_files([logger for name, logger in table.items() if name not in before])
    # In place: MMEngine's classes hold the table, and its order says which one is current.
    table.clear()
    table.update(before)
