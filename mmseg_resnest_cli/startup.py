# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the application changes in its own process; the library changes nothing."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
import warnings
from collections.abc import Iterator

__all__ = ["open_streams", "prepare_process", "use_device"]

# Warnings that a user can do nothing about: (start of the message, category, module), the first
# and the last as regular expressions.
_NOISE: tuple[tuple[str, type[Warning], str], ...] = (
    # align_corners is part of the published models; an image's size is what it is.
    (r"When align_corners=True, the output would", UserWarning, r"mmseg\.models\.utils\.wrappers$"),
    # Part of MMSegmentation's own recipe; it cannot be combined with class weights.
    (r"Default ``avg_non_ignore`` is", UserWarning, r"mmseg\.models\.losses\.cross_entropy_loss$"),
    # Two exclusive classes with an output each are what most label maps of two classes want.
    (
        r"For binary segmentation, we suggest",
        UserWarning,
        r"mmseg\.models\.decode_heads\.decode_head$",
    ),
    # MMEngine wraps models with an argument whose name torch is going to change.
    (r"`broadcast_buffers` is deprecated", FutureWarning, ""),
)


def open_streams() -> None:
    """Have standard streams that take any text, so that none ends a command.

    One that is closed (``>&-``) leads nowhere; what the encoding of one does not have is escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the lowest free descriptor, so the one that is closed
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _kept_for_good() -> Iterator[None]:
    """Leave what is made meanwhile to the end of the process out of garbage collection.

    Half a million objects are imported and stay. The collector would go through them several times
    during the import, an eighth of its time, and again in every full collection of a run.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def prepare_process() -> None:
    """Import the library and set up the process for a command.

    * What is imported is left out of garbage collection.
    * MMEngine reads every checkpoint as tensors and plain data.
    * MMEngine's messages go to log files only; warnings and errors are printed.
    * Freed memory is kept for the next step, in the data loading workers too.
    * Known warnings of the stack that no user can act on are not shown.
    * Once a run was stopped and saved, more signals do not spoil the exit code.
    """
    with _kept_for_good():
        from mmseg_resnest.engine.logs import quiet_console
        from mmseg_resnest.engine.preemption import end_process_with_run
        from mmseg_resnest.io.memory import keep_freed_memory
        from mmseg_resnest.weights import use_safe_loaders

    for message, category, module in _NOISE:
        warnings.filterwarnings("ignore", message, category, module)
    use_safe_loaders()
    quiet_console()
    keep_freed_memory()
    end_process_with_run()


def use_device(device: str | None, launcher: str = "none") -> None:
    """Let a training use one device: hide the other GPUs from torch, or all of them.

    Args:
        device: ``cpu``, ``cuda`` (the first one) or ``cuda:N``; None changes nothing.
        launcher: With one, each process has a GPU of its own; only ``cpu`` can be chosen.

    Raises:
        UserError: There is no such device, or the launcher chooses it.
    """
    from mmseg_resnest.errors import UserError

    if device is None:
        return
    kind, _, number = device.partition(":")
    if device != "cpu":
        if kind != "cuda" or not (number or "0").isdecimal() or device == "cuda:":
            raise UserError("argument", f"--device {device}", "must be cpu, cuda or cuda:N")
        if launcher != "none":
            message = (
                f"the launcher {launcher} gives each process its GPU; choose them with "
                "CUDA_VISIBLE_DEVICES"
            )
            raise UserError("argument", f"--device {device}", message)
        import torch

        found = torch.cuda.device_count()
        if int(number or 0) >= found:
            message = f"there are {found} GPUs here; use --device cpu, or check nvidia-smi"
            raise UserError("device", f"--device {device}", message)
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    chosen = "" if device == "cpu" else number or "0"
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(chosen)] if chosen and visible else chosen
