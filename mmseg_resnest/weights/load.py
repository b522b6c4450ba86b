# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Reads checkpoint files without ever running code that is in them.

PyTorch's files are pickles. Nothing that can run one is used, neither PyTorch's reader nor
Python's: see :mod:`~mmseg_resnest.weights.plain_pickle`.
"""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import UserError
from ..io.text import printable
from .archive import is_torch_archive, unpack
from .cache import download, is_address, is_remote
from .catalogue import did_you_mean
from .hashes import AGAIN, check_promise, promised_digits
from .hub import is_hub
from .mxnet_params import FILE_MAGIC, read_params
from .safetensors_files import read_safetensors
from .state_dict import as_tensor, unwrap_state_dict
from .torch_files import read_torch
from .zip_directory import read_directory


def resolve_checkpoint(name_or_path: str | Path) -> Path:
    """The file of a path, an address or a catalogue name (in this order), fetched if need be.

    Raises:
        UserError: There is no such file or name, it is a folder, it is empty, or it cannot be
            fetched.
    """
    if is_remote(name_or_path):
        return download(str(name_or_path))
    path = Path(name_or_path).expanduser()
    label = f"checkpoint {printable(path)}"
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise UserError(
            "not-found",
            f"checkpoint {str(name_or_path)[:300]!r}",
            f"neither a file nor a name of published weights{did_you_mean(str(name_or_path))}; "
            "give the path of a .pth, .pt, .zip, .safetensors or .params file",
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise UserError("wrong-path-type", label, "is a folder; give the path of the file in it")
    if not stat.S_ISREG(status.st_mode):
        raise UserError("wrong-path-type", label, "is not a regular file")
    if status.st_size == 0:
        raise UserError("empty", label, f"the file is empty; {AGAIN}")
    return path


def _read(file: BinaryIO, name: str, label: str, nested: bool = False) -> Any:
    """The record in an open file, whatever of the known formats it has by its first bytes."""
    check_promise(file, name, label)
    file.seek(0)
    head = file.read(64)
    file.seek(0)
    if head.startswith(b"PK"):
        members = read_directory(file, label)
        if is_torch_archive(members):
            return read_torch(file, label)
        if nested:
            raise UserError("format", label, "an archive in an archive; unpack it first")
        # a file that no folder lists, which is gone when it is closed
        with tempfile.TemporaryFile(prefix="mmseg-resnest-") as member:
            try:
                inner = unpack(file, members, label, member)
            except OSError as error:
                message = f"cannot be unpacked into {tempfile.gettempdir()}: {error}"
                raise UserError("not-writable", label, message) from error
            return _read(member, inner, f"{label} ({printable(inner[:80])})", nested=True)
    if head[:8] == FILE_MAGIC.to_bytes(8, "little"):
        return read_params(file, label)
    if name.endswith(".safetensors") or head[8:10] == b'{"':
        return read_safetensors(file, label)
    text = head.lstrip()
    if text.startswith((b"<", b"version https://git-lfs")):
        what = "a web page" if text.startswith(b"<") else "a Git LFS pointer"
        raise UserError("format", label, f"{what}, not a checkpoint; {AGAIN}")
    if name.endswith(".params"):
        return read_params(file, label)  # says what is wrong with it
    return read_torch(file, label)


def _read_path(name_or_path: str | Path) -> tuple[Any, str]:
    path = resolve_checkpoint(name_or_path)
    label = printable(path)
    try:
        with path.open("rb") as file:
            return _read(file, path.name, label), label
    except OSError as error:
        message = f"cannot be read ({error.strerror or error})"
        raise UserError("unreadable", label, message) from error
    except UserError:
        hashed = is_hub(name_or_path) or promised_digits(path.name) is not None
        if is_address(name_or_path) and not hashed:
            path.unlink(missing_ok=True)  # no hash has confirmed it: the next try fetches it
        raise


def load_checkpoint(
    name_or_path: str | Path, map_location: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Reads the state dict of a checkpoint file; nothing in the file is ever run.

    Args:
        name_or_path: A name of the catalogue, an address, or a file written by ``torch.save``
            (``.pth``, ``.pt``; present and old format), a ``.zip`` with one checkpoint in it,
            ``.safetensors``, or MXNet ``.params``. What counts is the content. A file name that
            ends in ``-`` and 8 hex digits is held against the file's SHA-256, SHA-1 and MD5.
        map_location: The device to put the tensors on.

    Returns:
        The tensors under the names they have in the file (see
        :func:`~mmseg_resnest.weights.convert_state_dict` for ours), without what wraps them
        (``state_dict``, ``model``, ``module.``).

    Raises:
        UserError: No such file, a format that is unknown, damaged or unsafe, a wrong checksum, or
            no state dict in it. Nothing is left behind.
    """
    subject = f"map_location={map_location!r}"
    try:
        device = torch.device(map_location)
    except (RuntimeError, TypeError) as error:
        raise UserError("device", subject, f"not a device ({error})") from error
    record, label = _read_path(name_or_path)
    tensors = weights_in(record, label)
    if device.type == "cpu":
        return tensors
    try:
        return {key: value.to(device) for key, value in tensors.items()}
    except (RuntimeError, AssertionError) as error:
        raise UserError("device", subject, str(error)) from error


def weights_in(record: Any, label: str) -> dict[str, Tensor]:
    """The state dict of a record that a checkpoint file ``label`` holds, without its wrapping.

    Raises:
        UserError: It holds no weights.
    """
    state_dict = unwrap_state_dict(record, label)
    return {key: as_tensor(key, value, label) for key, value in state_dict.items()}


def load_record(name_or_path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint file whatever it holds: plain data, as :func:`load_training_checkpoint`.

    Raises:
        UserError: As in :func:`load_checkpoint`, or the record is not a mapping.
    """
    record, label = _read_path(name_or_path)
    if not isinstance(record, Mapping):
        message = "does not hold a state dict (a mapping from names to tensors)"
        raise UserError("checkpoint", label, message)
    return dict(record)


def load_training_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads everything a training run has saved, for resuming; nothing in the file is ever run.

    Args:
        path: A checkpoint that MMEngine's runner wrote.

    Returns:
        The record as plain data on the CPU: dicts, lists, numbers, strings, tensors, NumPy
        arrays and MMEngine's ``HistoryBuffer``.

    Raises:
        UserError: As in :func:`load_checkpoint`, or the file holds weights only.
    """
    record, label = _read_path(path)
    if not isinstance(record, dict) or not isinstance(record.get("state_dict"), Mapping):
        message = "does not hold a training state ('state_dict' is missing); give a checkpoint "
        message += "that training wrote, or start from its weights with load_from"
        raise UserError("resume", label, message)
    return record
