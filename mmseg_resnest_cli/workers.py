# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the end of a data loader's worker looks like to its parent; without torch."""

from __future__ import annotations

import traceback

__all__ = ["is_lost_worker"]


def is_lost_worker(error: BaseException) -> bool:
    """Whether a loader met this while it took a batch from a worker that had just ended.

    Tensors come through a socket of the worker. A process that is being ended loses its sockets
    before its parent can see it: torch then passes on the error of the connection.
    """
    return isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and any(
        frame.f_code.co_name == "_try_get_data"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )
