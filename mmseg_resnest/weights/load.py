# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Reads checkpoint files without ever running code that is in them.

PyTorch's files are pickles. They are read with its restricted unpickler only, there is no way
back to the unrestricted one, and of the constructors that a training checkpoint needs beyond
tensors none is the real one: while a file is read, their names stand for the small classes below,
which check what they are given and are turned into arrays and histories afterwards. MMEngine's
own list would let files call ``getattr``, with which they could reach anything.
"""

from __future__ import annotations

import math
import pickle
import re
import stat
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..errors import UserError
from .archive import is_torch_archive, open_archive, unpack
from .catalogue import did_you_mean
from .convert import as_tensor, convert_state_dict, list_keys, unwrap_state_dict
from .download import download, is_address, is_remote
from .hashes import AGAIN, check_promise, promised_digits
from .mxnet_params import FILE_MAGIC, read_params

_CLASSIFIER = re.compile(
    r"(?:^|\.)(?:decode_head|auxiliary_head)(?:\.\d+)?\.(?:conv_seg|se_layer)\.(?:weight|bias)$"
)


# --- what a pickle may build ----------------------------------------------------------------


class _DType:
    """Stands for ``numpy.dtype``: numbers, booleans and strings only, no objects or records."""

    def __init__(self, spec: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(spec, str) or not re.fullmatch(r"[biufcSU]\d{1,6}", spec):
            raise pickle.UnpicklingError(f"array type {spec!r} is not plain data")
        self.dtype = np.dtype(spec)

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "=")):
            raise pickle.UnpicklingError("damaged array type")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray``."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("damaged array")
        _, shape, kind, fortran, data = state
        if (
            not isinstance(kind, _DType)
            or not isinstance(data, bytes)
            or not isinstance(shape, tuple)
            or len(shape) > 32
            or not all(isinstance(size, int) and size >= 0 for size in shape)
            or math.prod(shape) * kind.dtype.itemsize != len(data)
        ):
            raise pickle.UnpicklingError("an array's type, shape and data do not fit")
        flat = np.frombuffer(data, kind.dtype) if data else np.zeros(0, kind.dtype)
        array = flat.reshape(shape, order="F" if fortran else "C")
        self.value = array.astype(kind.dtype.newbyteorder("="))  # a copy: writable


class _History:
    """Stands for MMEngine's ``HistoryBuffer``, the record of one logged number."""

    state: Mapping[str, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("damaged HistoryBuffer")
        self.state = state

    def buffer(self) -> HistoryBuffer:
        state = self.state or {}
        log, count = _plain(state.get("_log_history")), _plain(state.get("_count_history"))
        length = state.get("max_length")
        arrays = isinstance(log, np.ndarray) and isinstance(count, np.ndarray)
        if (
            not arrays
            or not isinstance(length, int)
            or log.ndim != 1
            or log.shape != count.shape
            or log.dtype.kind not in "biuf"
            or count.dtype.kind not in "biuf"
        ):
            raise pickle.UnpicklingError("damaged HistoryBuffer")
        buffer = HistoryBuffer(max_length=length)
        buffer._log_history, buffer._count_history = log, count
        return buffer


def _reconstruct(kind: Any, shape: Any, dtype: Any) -> _Array:
    """Stands for NumPy's function of this name: the start of an array."""
    if kind is not _Array:
        raise pickle.UnpicklingError("only plain arrays can be read")
    return _Array()


def _scalar(kind: Any, data: Any = b"") -> np.generic:
    """Stands for NumPy's function of this name: a number of a NumPy type."""
    if not isinstance(kind, _DType) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("damaged number")
    if len(data) != kind.dtype.itemsize:
        raise pickle.UnpicklingError("a number's type and data do not fit")
    return np.frombuffer(data, kind.dtype)[0]


def _statistic(owner: Any, name: Any) -> None:
    """Stands for ``getattr``, by which HistoryBuffers name their methods; they have them anyway."""
    if owner is not _History or not isinstance(name, str):
        raise pickle.UnpicklingError("a call of getattr")


def _empty_bytes() -> bytes:
    """Stands for ``bytes``, by which old pickles write empty ones."""
    return b""


_STAND_INS: list[tuple[Callable, str]] = [
    (_Array, "numpy.ndarray"),
    (_DType, "numpy.dtype"),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_History, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_statistic, "builtins.getattr"),
    (_empty_bytes, "builtins.bytes"),
]
_GLOBALS_LOCK = threading.RLock()


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """PyTorch's list of allowed names is one for the process: ours takes its place meanwhile."""
    with _GLOBALS_LOCK:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(_STAND_INS)  # type: ignore[arg-type]
        try:
            yield
        finally:
            # what was added meanwhile (a module of PyTorch that was imported) stays
            added = [g for g in torch.serialization.get_safe_globals() if g not in _STAND_INS]
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals([*before, *added])


def _plain(value: Any, memo: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """``value`` with every stand-in replaced by what it stands for.

    ``memo`` maps ids to (object, result); it keeps the objects, so that no id is used again.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)][1]
    result: Any = value
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array without a value")
        result = value.value
    elif isinstance(value, _History):
        result = value.buffer()
    elif isinstance(value, _DType):
        result = value.dtype
    elif isinstance(value, dict):
        memo[id(value)] = value, value  # in place, so that what holds it holds the result
        for key in list(value):
            if isinstance(key, (_Array, _History, _DType)):
                raise pickle.UnpicklingError("a mapping with a damaged key")
            value[key] = _plain(value[key], memo)
    elif isinstance(value, list):
        memo[id(value)] = value, value
        value[:] = [_plain(item, memo) for item in value]
    elif type(value) is tuple:
        result = tuple(_plain(item, memo) for item in value)
    memo[id(value)] = value, result
    return result


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
            f"checkpoint {str(name_or_path)!r}: no such file, and no name of published weights"
            f"{did_you_mean(str(name_or_path))}; give the path of a .pth, .pt, .zip, .safetensors "
            "or .params file"
        ) from error
    if stat.S_ISDIR(mode):
        raise UserError(f"checkpoint {path} is a folder: give the path of the file in it")
    if not stat.S_ISREG(mode):
        raise UserError(f"checkpoint {path} is not a regular file")
    if path.stat().st_size == 0:
        raise UserError(f"checkpoint {path} is empty: {AGAIN}")
    return path


def _read_torch(file: BinaryIO, label: str) -> Any:
    """The record of a file written by ``torch.save``, in its present or its old format."""
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    if zipfile.is_zipfile(file):
        with open_archive(file, label) as archive:
            entries = archive.infolist()
        # torch.save does not pack
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
            sum(entry.file_size for entry in entries) > size
        ):
            raise UserError(f"{label}: refused, it unpacks to more than the file; {AGAIN}")
    file.seek(0)
    try:
        with _only_stand_ins(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = torch.load(file, map_location="cpu", weights_only=True)
        return _plain(record)
    except Exception as error:  # a damaged pickle can fail in any way
        asked = re.search(r"(?:GLOBAL|function) <?(?:built-in function )?([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and asked:
            raise UserError(
                f"{label}: refused, nothing was run: beyond tensors and plain data it asks for "
                f"{asked[1]!r}, which could be any program. Get the weights from their publisher, "
                "or have whoever made the file save the state dict alone"
            ) from error
        first_line = str(error).partition("\n")[0][:200] or type(error).__name__
        if first_line.startswith("Weights only load failed"):  # and advice not to load safely
            first_line = "it does not begin as one"
        raise UserError(
            f"{label}: the file is truncated, damaged or no checkpoint ({first_line}): {AGAIN}"
        ) from error


def _read_safetensors(file: BinaryIO, label: str) -> dict[str, Tensor]:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(
            f"{label}: reading .safetensors needs the package 'safetensors': "
            "pip install safetensors"
        ) from error
    file.seek(0)
    try:
        return safetensors.torch.load(file.read())
    except Exception as error:
        raise UserError(f"{label}: not a usable .safetensors file ({error}): {AGAIN}") from error


def _unpack(archive: zipfile.ZipFile, size: int, label: str) -> tuple[BinaryIO, str]:
    """The one checkpoint in a .zip, unpacked into a file that no folder lists.

    Returns:
        The open file, which is gone when closed, and its name in the archive.
    """
    target = tempfile.TemporaryFile(prefix="mmseg-resnest-")  # noqa: SIM115 (given back open)
    try:
        return target, unpack(archive, size, label, target)
    except OSError as error:
        target.close()
        raise UserError(
            f"{label}: could not be unpacked into {tempfile.gettempdir()}: {error}"
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
        with open_archive(file, label) as archive:
            if not is_torch_archive(archive):
                if nested:
                    raise UserError(f"{label}: an archive in an archive: unpack it first")
                file.seek(0, 2)
                member, inner = _unpack(archive, file.tell(), label)
                with member:
                    return _read(member, inner, f"{label} ({inner})", nested=True)
        return _read_torch(file, label)
    if head[:8] == FILE_MAGIC.to_bytes(8, "little"):
        return read_params(file, label)
    if name.endswith(".safetensors") or head[8:10] == b'{"':
        return _read_safetensors(file, label)
    text = head.lstrip()
    if text.startswith((b"<", b"version https://git-lfs")):
        what = "a web page" if text.startswith(b"<") else "a Git LFS pointer"
        raise UserError(
            f"{label}: this is {what}, not a checkpoint: the download went wrong; {AGAIN}"
        )
    if name.endswith(".params"):
        return read_params(file, label)  # says what is wrong with it
    return _read_torch(file, label)


def _read_path(name_or_path: str | Path) -> tuple[Any, str]:
    path = resolve_checkpoint(name_or_path)
    label = str(path)
    try:
        with path.open("rb") as file:
            return _read(file, path.name, label), label
    except OSError as error:
        raise UserError(f"{label}: cannot be read: {error.strerror or error}") from error
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
        raise UserError(f"map_location={map_location!r} is not a device: {error}") from error
    record, label = _read_path(name_or_path)
    try:
        state_dict = unwrap_state_dict(record)
        kinds = (Tensor, np.ndarray, np.generic)
        wrong = [key for key, value in state_dict.items() if not isinstance(value, kinds)]
        if wrong:
            raise UserError(f"these keys of the state dict are no tensors: {list_keys(wrong)}")
        tensors = {key: as_tensor(key, value) for key, value in state_dict.items()}
    except UserError as error:
        raise UserError(f"{label}: {error}") from error
    if device.type == "cpu":
        return tensors
    try:
        return {key: value.to(device) for key, value in tensors.items()}
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"map_location={map_location!r}: {error}") from error


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
        raise UserError(f"{label}: holds no state dict (a mapping from names to tensors)")
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
            f"{label}: holds no training state to resume from (no 'state_dict' in it): give a "
            "checkpoint that training wrote, or start from its weights with load_from"
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
            why_not = f" (It does not convert either: {error}.)"
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
            f"{label} does not fit {type(inner).__name__}; {'; '.join(found)}. {advice}.{why_not}"
        )
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
                f"{name_or_path}: no key starts with prefix {start!r}; its keys are: "
                f"{list_keys(state_dict)}"
            )
        state_dict = part
    try:
        state_dict = convert_state_dict(state_dict)
    except UserError as error:
        raise UserError(f"{name_or_path}: {error}") from error
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
