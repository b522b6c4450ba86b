# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Whether kernels in Triton run: on a CUDA device, when asked for, until one fails.

They have to be asked for as long as nobody has measured them on a GPU. Where they cannot run, the
plain code of torch does the same, and one line in the log says why.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from types import TracebackType

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..errors import UserError

__all__ = ["SWITCH", "falling_back", "turned_off", "usable", "why_not"]

SWITCH = "MMSEG_RESNEST_TRITON"
"""The environment variable: 1 turns the kernels on."""

# None until the first tensor on a GPU is met; a process does not change its mind back.
_on: bool | None = None
_reason: str | None = None


def usable(x: Tensor) -> bool:
    """Whether a kernel may be tried on ``x``; the first answer for a GPU may log a line.

    Compilers and tracers get the plain code: they make kernels of their own, or none at all.

    Raises:
        UserError: The environment variable is neither 0 nor 1.
    """
    global _on, _reason
    if not _on_gpu(x) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if _on is None:
        _on = _wanted()
        _reason = None if _on else f"{SWITCH} is not 1"
        if _on and importlib.util.find_spec("triton") is None:
            _give_up("Triton is not installed")
    return _on


def why_not() -> str | None:
    """Why the kernels are off; None where they run or nothing has asked for them yet."""
    return _reason


@contextlib.contextmanager
def turned_off() -> Iterator[None]:
    """A block in which plain torch runs, to compare the kernels with."""
    global _on
    before, _on = _on, False
    try:
        yield
    finally:
        _on = before


class falling_back:
    """A block that tries a kernel; if that fails, the code behind the block does the work.

    What fails once, most often because there is no C compiler for Triton to build its launcher
    with, is not tried again by this process. Too little memory and time say nothing about a kernel.
    """

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Whether the error was turned into a line."""
        others = (torch.OutOfMemoryError, TimeoutError)
        if not isinstance(error, Exception) or isinstance(error, others):
            return False
        words = " ".join(str(error).split())
        _give_up(f"{type(error).__name__}: {words[:200]}{'...' if len(words) > 200 else ''}")
        return True


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _wanted() -> bool:
    value = os.environ.get(SWITCH, "0")
    if value not in ("0", "1"):
        raise UserError(
            "environment",
            f"environment variable {SWITCH}={value}",
            "is neither 0 nor 1; set it to 1 to run with kernels in Triton, or remove it",
        )
    return value == "1"


def _give_up(reason: str) -> None:
    global _on, _reason
    _on = False
    # Threads that were inside a kernel at the same time say nothing more.
    if _reason is None:
        _reason = reason
        print_log(
            f"kernels in Triton are off, plain torch runs instead ({reason})",
            logger="current",
            level=logging.WARNING,
        )
