# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Errors that surface late, such as a lost data loading worker, as a UserError."""

from __future__ import annotations

import errno
import re

import torch

from mmseg_resnest.errors import CODES, UserError
from mmseg_resnest.io.memory import ran_out_of_memory

from .workers import is_lost_worker

__all__ = ["explain_error"]

_WORKER = "data loading worker"
_WORKER_HELP = (
    "Set train_dataloader.num_workers=0 (and val_, test_) through --cfg-options to see the cause "
    "in the main process; if memory ran out, use fewer workers; in a container, give it more "
    "shared memory (docker run --shm-size=8g)"
)
_WORKER_FAILED = re.compile(r"^Caught (?P<kind>\w+) in (?P<where>[^\n]+?)\.?\nOriginal Traceback")
_WORKER_GONE = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pid>[\d, ]+)\) (?P<how>[^\n]*)")
_CHANNELS = re.compile(
    r"Given groups=.* to have (?P<wants>\d+) channels, but got (?P<gets>\d+) channels"
)
# What str() makes of a UserError: torch passes no more than the text of a worker's exception on.
_USER_ERROR = re.compile(
    r"(?:(?P<subject>.*?): )?(?P<message>.*) \[(?P<code>[a-z-]+)\]\Z", re.DOTALL
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_UNUSABLE = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE)


def explain_error(error: BaseException) -> UserError | None:
    """The UserError behind an exception that surfaced late, or None when it is a fault of the code.

    A lost data loading worker, memory or disk that ran out, a file that cannot be read or written,
    a name that is in no registry.
    """
    text = str(error)
    if gone := _WORKER_GONE.search(text):
        who = f"{_WORKER} (process {gone['pid'].strip()})"
        return UserError("data-loading", who, f"{gone['how'].strip(' .')}. {_WORKER_HELP}")
    if is_lost_worker(error) or "Pin memory thread exited unexpectedly" in text:
        how = f"ended while it handed over a batch ({type(error).__name__}: {_first_line(text)})"
        return UserError("data-loading", _WORKER, f"{how}. {_WORKER_HELP}")
    if "DataLoader timed out" in text and not isinstance(error, UserError):
        how = f"hangs ({_first_line(text)}); raise the loader's timeout if it is only slow"
        return UserError("data-loading", _WORKER, f"{how}. {_WORKER_HELP}")
    if failed := _WORKER_FAILED.match(text):
        return _explain_failed_worker(failed, text)
    if isinstance(error, UserError):
        return error
    if isinstance(error, torch.OutOfMemoryError) or "CUDA out of memory" in text:
        return UserError(
            "memory",
            "GPU",
            "its memory ran out. To train, use --amp, a smaller train_dataloader.batch_size or "
            "crop, activation checkpointing (model.backbone.with_cp=True), or more GPUs; to "
            "evaluate, a smaller model.test_cfg.window_batch_size or crop_size",
        )
    if ran_out_of_memory(error):
        return UserError(
            "memory",
            "this machine",
            f"its memory ran out ({_first_line(text)}). To train, use a smaller model, "
            "train_dataloader.batch_size or crop, or fewer workers; to predict, a smaller --tile",
        )
    channels = _CHANNELS.search(text)
    if channels and isinstance(error, RuntimeError):
        return UserError(
            "model",
            "config key model",
            f"its parts do not fit together: a layer takes {channels['wants']} channels and gets "
            f"{channels['gets']}; compare in_channels and in_index of model.decode_head and "
            "model.auxiliary_head with the outputs of model.backbone",
        )
    if "PytorchStreamWriter failed" in text:
        how = f"the disk is full ({_first_line(text)}); make room, or set --work-dir"
        return UserError("not-writable", "a checkpoint", how)
    if "received 0 items of ancdata" in text or text.startswith("Too many open files"):
        return _too_many_files()
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_os_error(error)
    if isinstance(error, KeyError) and " is not in the " in text and "registry" in text:
        name, _, rest = _first_line(text.strip("\"'")).split(" Please check")[0].partition(" ")
        return UserError("config-type", name, rest)
    return None


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no message"


def _too_many_files() -> UserError:
    how = "there are too many; raise the limit (ulimit -n) or use fewer workers"
    return UserError("environment", "open files", how)


def _explain_failed_worker(failed: re.Match[str], text: str) -> UserError:
    """An exception that was raised in a data loading worker and sent to the main process."""
    lines = text.strip().splitlines()
    # The last unindented line that names the exception starts the message of the innermost one.
    name = re.compile(rf"^(?:[\w.]+\.)?{re.escape(failed['kind'])}(:|$)")
    starts = [i for i, line in enumerate(lines) if name.match(line)]
    message = "\n".join(lines[starts[-1] :]).partition(":")[2].strip() if starts else ""
    known = _USER_ERROR.match(message)
    if known and known["code"] in CODES:
        return UserError(known["code"], known["subject"] or "", known["message"])
    what = f"{failed['kind']}: {_first_line(message)}" if message else failed["kind"]
    places = re.findall(r'^  File "([^"]+)", line (\d+)', text, re.M)
    place = f", at {places[-1][0]}:{places[-1][1]}" if places else ""
    return UserError("data-loading", failed["where"], f"failed with {what}{place}. {_WORKER_HELP}")


def _explain_os_error(error: OSError) -> UserError | None:
    where = error.filename if error.filename is not None else "a file"
    reason = (error.strerror or str(error)).lower()
    if error.errno == errno.EMFILE:
        return _too_many_files()
    if error.errno in _FULL:
        return UserError("not-writable", where, f"{reason}; make room, or choose another place")
    if error.errno in _DENIED:
        how = f"{reason}; change its permissions, or choose another place"
        return UserError("unreadable", where, how)
    if error.filename is not None and error.errno == errno.ENOENT:
        return UserError("not-found", where, reason)
    if error.filename is not None and error.errno in _UNUSABLE:
        return UserError("unreadable", where, reason)
    return None
