# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Errors that surface late, such as a lost data loading worker, in words."""

from __future__ import annotations

import errno
import re
import traceback

import torch

from mmseg_resnest.errors import CODES, UserError

__all__ = ["explain_error", "is_lost_worker"]

_WORKER_FAILED = re.compile(r"^Caught (?P<kind>\w+) in (?P<where>[^\n]+?)\.?\nOriginal Traceback")
_WORKER_GONE = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pid>[\d, ]+)\) (?P<how>[^\n]*)")
_CHANNELS = re.compile(
    r"Given groups=.* to have (?P<wants>\d+) channels, but got (?P<gets>\d+) channels"
)
_WORKER_HELP = (
    "Set train_dataloader.num_workers=0 (and val_, test_) through --cfg-options to see the cause "
    "in the main process; if memory ran out, use fewer workers; in a container, give it more "
    "shared memory (docker run --shm-size=8g)"
)
# What str() makes of a UserError: torch passes no more than the text of a worker's exception on.
_USER_ERROR = re.compile(
    r"(?:(?P<subject>.*?): )?(?P<message>.*) \[(?P<code>[a-z-]+)\]\Z", re.DOTALL
)
_TOO_MANY_FILES = "too many open files: raise the limit (ulimit -n) or use fewer workers"


def explain_error(error: BaseException) -> UserError | None:
    """The UserError behind an exception that surfaced late, or None when it is a fault of the code.

    Args:
        error: What a tool met: a lost data loading worker, memory or disk that ran out, a file
            that cannot be read or written, a name that is in no registry.

    Returns:
        An error with a message that says what to do, or None.
    """
    text = str(error)
    gone = _WORKER_GONE.search(text)
    if gone:
        return UserError(
            "input",
            "",
            f"the data loading worker (process {gone['pid'].strip()}) {gone['how'].strip(' .')}. "
            + _WORKER_HELP,
        )
    if is_lost_worker(error) or "Pin memory thread exited unexpectedly" in text:
        return UserError(
            "input",
            "",
            f"a data loading worker ended while it handed over a batch ({type(error).__name__}: "
            f"{_first_line(text)}). " + _WORKER_HELP,
        )
    if "DataLoader timed out" in text:
        return UserError(
            "input",
            "",
            f"a data loading worker hangs ({_first_line(text)}); the loader's timeout sets the "
            "seconds. " + _WORKER_HELP,
        )
    if isinstance(error, UserError) and not _WORKER_FAILED.match(text):
        return error
    failed = _WORKER_FAILED.match(text)
    if failed:
        return _explain_failed_worker(failed, text)
    if isinstance(error, torch.OutOfMemoryError) or "CUDA out of memory" in text:
        return UserError(
            "device",
            "the GPU ran out of memory. Train",
            "--amp, a smaller train_dataloader.batch_size or "
            "crop, activation checkpointing (model.backbone.with_cp=True), or more GPUs; "
            "evaluate: a smaller model.test_cfg.window_batch_size or crop_size",
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return UserError(
            "size-mismatch",
            f"this machine's memory ran out ({_first_line(text)}). Train",
            "a smaller "
            "train_dataloader.batch_size or crop, fewer workers; predict: a smaller --tile; "
            "otherwise a smaller model, or more memory",
        )
    channels = _CHANNELS.search(text)
    if channels and isinstance(error, RuntimeError):
        return UserError(
            "input",
            "two parts of the model do not fit together",
            f"a layer takes {channels['wants']} "
            f"channels and gets {channels['gets']}; compare in_channels and in_index of "
            "model.decode_head and model.auxiliary_head with what model.backbone puts out",
        )
    if "PytorchStreamWriter failed" in text:
        return UserError(
            "argument",
            f"the disk ran full while writing ({_first_line(text)})",
            "make room, or choose another place with --work-dir",
        )
    if "received 0 items of ancdata" in text or text.startswith("Too many open files"):
        return UserError("input", "", _TOO_MANY_FILES)
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_os_error(error)
    if isinstance(error, KeyError) and " is not in the " in text and "registry" in text:
        return UserError("input", "", _first_line(text.strip("\"'")).split(" Please check")[0])
    return None


def is_lost_worker(error: BaseException) -> bool:
    """Whether a loader met this while it took a batch from a worker that had just ended.

    Tensors come through a socket of the worker. A process that is being ended loses its sockets
    before its parent can see it: torch then passes on the error of the connection.
    """
    return isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and any(
        frame.f_code.co_name == "_try_get_data"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no message"


def _explain_failed_worker(failed: re.Match[str], text: str) -> UserError:
    """An exception that was raised in a data loading worker and sent to the main process."""
    lines = text.strip().splitlines()
    # The last unindented line that names the exception starts the message of the innermost one.
    starts = [
        i
        for i, line in enumerate(lines)
        if re.match(rf"^(?:[\w.]+\.)?{re.escape(failed['kind'])}(:|$)", line)
    ]
    message = "\n".join(lines[starts[-1] :]).partition(":")[2].strip() if starts else ""
    told = _USER_ERROR.match(message)
    if told and told["code"] in CODES:
        return UserError(told["code"], told["subject"] or "", told["message"])
    places = re.findall(r'^  File "([^"]+)", line (\d+)', text, re.M)
    place = f", at {places[-1][0]}:{places[-1][1]}" if places else ""
    return UserError(
        "input",
        "",
        f"{failed['where']} failed with {failed['kind']}{': ' if message else ''}"
        f"{_first_line(message) if message else ''}{place}. " + _WORKER_HELP,
    )


def _explain_os_error(error: OSError) -> UserError | None:
    where = error.filename if error.filename is not None else "a file"
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            "argument", where, f"{reason}; make room, or choose another place with --work-dir"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(
            "unreadable",
            where,
            f"{reason}; change its permissions or choose another place with --work-dir",
        )
    if error.filename is not None and error.errno in (
        errno.ENOENT,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.EIO,
        errno.ESTALE,
    ):
        return UserError("input", where, f"{reason}")
    if error.errno == errno.EMFILE:
        return UserError("input", "", _TOO_MANY_FILES)
    return None
