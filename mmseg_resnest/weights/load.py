# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Reads checkpoint files without ever running code that is in them.

PyTorch's files are pickles. Nothing that can run one is used, neither PyTorch's reader nor
Python's: see :mod:`~mmseg_resnest.weights.plain_pickle`.
"""

from __future__ import annotations

import re
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..errors import UserError
from ..io.text import printable
from .archive import is_torch_archive, unpack
from .cache import download, is_address, is_remote
from .catalogue import did_you_mean
from .convert import as_tensor, convert_state_dict, unwrap_state_dict
from .hashes import AGAIN, check_promise, promised_digits
from .mxnet_params import FILE_MAGIC, read_params
from .names import list_keys
from .safetensors_files import read_safetensors
from .torch_files import read_torch
from .zip_directory import Member, read_directory

_CLASSIFIER = re.compile(
    r"(?:^|\.)(?:decode_head|auxiliary_head)(?:\.\d+)?\.(?:conv_seg|se_layer)\.(?:weight|bias)$"
)


# --- files ----------------------------------------------------------------------------------


def resolve_checkpoint(name_or_path: str | Path) -> Path:
    """The file that ``name_or_path`` means; what is not on this machine is fetched first.

    Args:
        name_or_path: A path, an address (:func:`~mmseg_resnest.weights.download.download`), or a
            name of the catalogue. A file that exists goes before a name.

    Raises:
        UserError: There is no such file or name, it is a folder, it is empty, or it cannot be
            fetched.
    """
    if is_remote(name_or_path):
        return download(str(name_or_path))
    path = Path(name_or_path).expanduser()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(
            "not-found",
            f"checkpoint {str(name_or_path)!r}",
            f"no such file, and no name of published weights"
            f"{did_you_mean(str(name_or_path))}; give the path of a .pth, .pt, .zip, .safetensors "
            "or .params file",
        ) from error
    if stat.S_ISDIR(mode):
        raise UserError(
            "wrong-path-type", f"checkpoint {path} is a folder", "give the path of the file in it"
        )
    if not stat.S_ISREG(mode):
        raise UserError("wrong-path-type", "", f"checkpoint {path} is not a regular file")
    if path.stat().st_size == 0:
        raise UserError("empty", f"checkpoint {path} is empty", f"{AGAIN}")
    return path


def _unpack(file: BinaryIO, members: Sequence[Member], label: str) -> tuple[BinaryIO, str]:
    """The one checkpoint in a .zip, unpacked into a file that no folder lists.

    Returns:
        The open file, which is gone when closed, and its name in the archive.
    """
    target = tempfile.TemporaryFile(prefix="mmseg-resnest-")  # noqa: SIM115 (given back open)
    try:
        return target, unpack(file, members, label, target)
    except OSError as error:
        target.close()
        raise UserError(
            "checkpoint", label, f"could not be unpacked into {tempfile.gettempdir()}: {error}"
        ) from error
    except BaseException:
        target.close()
        raise


def _read(file: BinaryIO, name: str, label: str, nested: bool = False) -> Any:
    """The record in an open file, whatever of the known formats it has by its first bytes."""
    check_promise(file, name, label)
    file.seek(0)
    head = file.read(64)
    file.seek(0)
    if head.startswith(b"PK"):
        members = read_directory(file, label)
        if not is_torch_archive(members):
            if nested:
                raise UserError("checkpoint", label, "an archive in an archive: unpack it first")
            member, inner = _unpack(file, members, label)
            with member:
                return _read(member, inner, f"{label} ({printable(inner[:80])})", nested=True)
        return read_torch(file, label)
    if head[:8] == FILE_MAGIC.to_bytes(8, "little"):
        return read_params(file, label)
    if name.endswith(".safetensors") or head[8:10] == b'{"':
        return read_safetensors(file, label)
    text = head.lstrip()
    if text.startswith((b"<", b"version https://git-lfs")):
        what = "a web page" if text.startswith(b"<") else "a Git LFS pointer"
        raise UserError(
            "checkpoint",
            label,
            f"this is {what}, not a checkpoint: the download went wrong; {AGAIN}",
        )
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
        raise UserError(
            "unreadable", label, f"cannot be read: {error.strerror or error}"
        ) from error
    except UserError:
        if is_address(name_or_path) and promised_digits(path.name) is None:
            path.unlink(missing_ok=True)  # no hash has vouched for it: the next try fetches it
        raise


def load_checkpoint(
    name_or_path: str | Path, map_location: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Reads the state dict of a checkpoint file; nothing in the file is ever run.

    Args:
        name_or_path: A name of the catalogue, an address, or a file written by ``torch.save``
            (``.pth``, ``.pt``; present and old format), a ``.zip`` with one checkpoint in it,
            ``.safetensors``, or MXNet ``.params``. What counts is the content. A file name that
            ends in ``-`` and 8 hex digits is held against the file's SHA-256 and SHA-1.
        map_location: The device to put the tensors on.

    Returns:
        The tensors under the names they have in the file (see
        :func:`~mmseg_resnest.weights.convert_state_dict` for ours), without what wraps them
        (``state_dict``, ``model``, ``module.``).

    Raises:
        UserError: No such file, a format that is unknown, damaged or unsafe, a wrong checksum, or
            no state dict in it. Nothing is left behind.
    """
    try:
        device = torch.device(map_location)
    except (RuntimeError, TypeError) as error:
        raise UserError(
            "checkpoint", f"map_location={map_location!r} is not a device", f"{error}"
        ) from error
    record, label = _read_path(name_or_path)
    try:
        state_dict = unwrap_state_dict(record)
        kinds = (Tensor, np.ndarray, np.generic)
        wrong = [key for key, value in state_dict.items() if not isinstance(value, kinds)]
        if wrong:
            raise UserError(
                "checkpoint", "these keys of the state dict are no tensors", f"{list_keys(wrong)}"
            )
        tensors = {key: as_tensor(key, value) for key, value in state_dict.items()}
    except UserError as error:
        raise UserError("checkpoint", label, f"{error.text}") from error
    if device.type == "cpu":
        return tensors
    try:
        return {key: value.to(device) for key, value in tensors.items()}
    except (RuntimeError, AssertionError) as error:
        raise UserError("checkpoint", f"map_location={map_location!r}", f"{error}") from error


def load_record(name_or_path: str | Path) -> dict[str, Any]:
    """Reads the whole of a checkpoint file, whatever it holds; nothing in the file is ever run.

    Args:
        name_or_path: As for :func:`load_checkpoint`.

    Returns:
        The record as plain data on the CPU, see :func:`load_training_checkpoint`.

    Raises:
        UserError: As in :func:`load_checkpoint`, or the record is no mapping.
    """
    record, label = _read_path(name_or_path)
    if not isinstance(record, Mapping):
        raise UserError(
            "checkpoint", label, "holds no state dict (a mapping from names to tensors)"
        )
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
        raise UserError(
            "checkpoint",
            label,
            "holds no training state to resume from (no 'state_dict' in it): give a "
            "checkpoint that training wrote, or start from its weights with load_from",
        )
    return record


# --- into a model ---------------------------------------------------------------------------


_STAGE = re.compile(r"((?:.*\.)?)layer[2-4]\.")


def _without_unbuilt_stages(
    state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """``state_dict`` less the stages that a backbone with fewer of them does not have."""
    built = {match[0] for key in target if (match := _STAGE.match(key))}
    left_out = set()
    for key in state_dict:
        match = _STAGE.match(key)
        if match and match[0] not in built and f"{match[1]}layer1.0.conv1.weight" in target:
            left_out.add(match[0])
    if left_out:
        print_log(
            f"left out of the checkpoint, the model has no such stages: {list_keys(left_out)}",
            logger="current",
        )
    return {
        key: value
        for key, value in state_dict.items()
        if not ((match := _STAGE.match(key)) and match[0] in left_out)
    }


def load_into(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    drop_head_for_other_classes: bool = False,
    source: str | Path | None = None,
    check_only: bool = False,
) -> tuple[str, ...]:
    """Loads a state dict strictly; one with other names is converted first if its layout is known.

    Args:
        model: The model, possibly wrapped for distributed training.
        state_dict: Tensors under the model's names, or in a layout that
            :func:`~mmseg_resnest.weights.convert_state_dict` turns into them.
        drop_head_for_other_classes: Where the checkpoint has another number of classes, leave
            the last layer of each head (``conv_seg``, ``se_layer``) as the model has it; one log
            line says so. Without it another number of classes is an error.
        source: The file that errors name.
        check_only: Check that it fits, and load nothing.

    Returns:
        The keys that were dropped.

    Raises:
        UserError: Keys are missing, left over or of another shape; the message lists them. The
            model is untouched then.
    """
    inner = cast(nn.Module, model.module) if is_model_wrapper(model) else model
    target = inner.state_dict()
    label = "the checkpoint" if source is None else str(source)
    why_not = ""
    if state_dict.keys() != target.keys():
        try:
            state_dict = convert_state_dict(state_dict)
        except UserError as error:
            why_not = f" (It does not convert either: {error.text}.)"
        state_dict = _without_unbuilt_stages(state_dict, target)
    missing = [key for key in target if key not in state_dict]
    unexpected = [key for key in state_dict if key not in target]
    differing = [
        key
        for key, value in state_dict.items()
        if key in target and tuple(value.shape) != tuple(target[key].shape)
    ]
    classes = [
        key
        for key in differing
        if _CLASSIFIER.search(key) and state_dict[key].shape[1:] == target[key].shape[1:]
    ]
    dropped: tuple[str, ...] = ()
    if classes and drop_head_for_other_classes:
        dropped = tuple(classes)
        differing = [key for key in differing if key not in classes]
    if missing or unexpected or differing:
        found = []
        if missing:
            found.append(f"{len(missing)} keys are missing: {list_keys(missing)}")
        if unexpected:
            found.append(f"{len(unexpected)} keys are unknown to it: {list_keys(unexpected)}")
        if differing:
            shapes = (
                f"{key} ({list(state_dict[key].shape)}, the model has {list(target[key].shape)})"
                for key in differing
            )
            found.append(f"{len(differing)} keys have another shape: {list_keys(shapes)}")
        advice = "Use the config that the checkpoint belongs to"
        if classes and not dropped:
            theirs, ours = state_dict[classes[0]].shape[0], target[classes[0]].shape[0]
            advice += (
                f"; it has {theirs} classes and the model {ours}: to start from the rest of it, "
                "load with drop_head_for_other_classes=True"
            )
        raise UserError(
            "checkpoint",
            "",
            f"{label} does not fit {type(inner).__name__}; {'; '.join(found)}. {advice}.{why_not}",
        )
    if check_only:
        return dropped
    kept = {
        key: sharded_like(value, target[key])
        for key, value in state_dict.items()
        if key not in dropped
    }
    inner.load_state_dict(kept, strict=not dropped)
    if dropped:
        print_log(
            f"{label} has {state_dict[dropped[0]].shape[0]} classes, the model "
            f"{target[dropped[0]].shape[0]}: dropped {list_keys(dropped)}",
            logger="current",
        )
    return dropped


def load_backbone(backbone: nn.Module, name_or_path: str | Path, prefix: str | None = None) -> None:
    """Loads a ResNeSt backbone from a file in any known layout, strictly.

    Args:
        backbone: A :class:`~mmseg_resnest.models.ResNeSt`.
        name_or_path: What :func:`load_checkpoint` takes: a backbone or a segmentation model, of
            which the backbone is taken.
        prefix: Use only the keys that start with it, without it.

    Raises:
        UserError: The file cannot be read, has no key with the prefix, has an unknown layout, or
            does not fit the backbone.
    """
    state_dict = load_checkpoint(name_or_path)
    if prefix:
        start = prefix.rstrip(".") + "."
        part = {k[len(start) :]: value for k, value in state_dict.items() if k.startswith(start)}
        if not part:
            raise UserError(
                "checkpoint",
                name_or_path,
                f"no key starts with prefix {start!r}; its keys are: {list_keys(state_dict)}",
            )
        state_dict = part
    try:
        state_dict = convert_state_dict(state_dict)
    except UserError as error:
        raise UserError("checkpoint", name_or_path, f"{error.text}") from error
    if any(key.startswith("backbone.") for key in state_dict):
        state_dict = {
            key.removeprefix("backbone."): value
            for key, value in state_dict.items()
            if key.startswith("backbone.")
        }
    load_into(backbone, state_dict, source=name_or_path)


def sharded_like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor as the parts of a ``DTensor`` like another one; as it is for a plain one.

    Args:
        value: Whole, and the same on every process.
        target: Of the same shape.
    """
    if not hasattr(target, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded = cast(Any, target)
    mesh = sharded.device_mesh
    # Without a source: nothing is sent, every process has it.
    return distribute_tensor(
        value.to(mesh.device_type), mesh, sharded.placements, src_data_rank=None
    )
