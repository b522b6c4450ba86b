# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the names in a pickle stand for: the table of everything that one may use.

A name is a value, or a function of this file that checks its arguments. None of the things that the
names mean elsewhere is ever called.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from .._stack import make_history

_MAX_DIMS = 64
_MAX_ARRAY_DIMS = 32


class NotAllowed(Exception):
    """A pickle asks for something else than plain data: its argument is the name."""


class Damaged(Exception):
    """A pickle does not have the form that ``torch.save`` gives it."""


class Budget:
    """How many bytes may be allocated while one file is read."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def spend(self, count: int) -> None:
        """Count an allocation; raises Damaged when there is no budget left for it."""
        self._left -= count
        if self._left < 0:
            raise Damaged("it would take far more memory than the file is large")


# --- what stands on the stack for a name ----------------------------------------------------


class Name:
    """A name that is a part of something: a class that is never made, or a function."""

    __slots__ = ("call", "name")

    def __init__(self, name: str, call: Callable[[Budget, tuple], Any] | None = None) -> None:
        self.name, self.call = name, call


class StorageType:
    """The name of a storage class, which says of what type its elements are."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class Storage:
    """Memory for tensors: ``data`` is (number of bytes,), uint8; ``dtype`` the elements' type."""

    __slots__ = ("bytes", "dtype", "untyped")

    def __init__(self, data: Tensor, dtype: torch.dtype) -> None:
        self.bytes = data
        self.untyped = data.untyped_storage()
        self.dtype = dtype


class Unfinished:
    """An object of which a pickle has not set the state yet; ``finish`` makes it of the state."""

    __slots__ = ("finish", "key")

    def __init__(self, finish: Callable[[Budget, Any], Any]) -> None:
        self.finish = finish
        self.key: int | None = None  # where the reader remembers it, until it is finished


# --- tensors --------------------------------------------------------------------------------


def _is_shape(value: Any, most: int = _MAX_DIMS) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= most
        and all(type(size) is int and size >= 0 for size in value)
    )


def _tensor(
    budget: Budget,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    _hooks: Any = None,
    dtype: Any = None,
    *metadata: Any,
) -> Tensor:
    """A tensor within its storage."""
    dtype = dtype or getattr(storage, "dtype", None)
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise Damaged("a tensor without a storage")
    shapes = (size, stride, (offset,))
    if not all(map(_is_shape, shapes)) or len(size) != len(stride):
        raise Damaged("a tensor with a damaged shape")
    count = math.prod(size)
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else -1
    if (offset + last + 1) * dtype.itemsize > storage.untyped.nbytes():
        raise Damaged("a tensor reaches beyond its storage")
    if any(metadata):
        raise Damaged("a tensor that is conjugate or negative by a flag")
    budget.spend(count * dtype.itemsize)
    tensor = torch.empty(0, dtype=dtype).set_(storage.untyped, offset, size, stride)
    if requires_grad is True and (tensor.is_floating_point() or tensor.is_complex()):
        tensor.requires_grad_()
    return tensor


def _rebuild_parameter(budget: Budget, args: tuple) -> nn.Parameter:
    data, requires_grad = args[:2]  # then hooks, and attributes that somebody set
    if not isinstance(data, Tensor) or not isinstance(requires_grad, bool):
        raise Damaged("damaged parameter")
    return nn.Parameter(data.detach(), requires_grad)


def _rebuild_from_type(budget: Budget, args: tuple) -> Any:
    """A tensor to which somebody has given attributes; they are left out."""
    function, kind, inner, _state = args
    if not isinstance(function, Name) or function.name not in _TENSOR_FUNCTIONS:
        raise Damaged("damaged tensor")
    if not isinstance(kind, Name) or kind.name not in _TENSOR_CLASSES:
        raise NotAllowed(getattr(kind, "name", "a class of tensors"))
    return _TENSOR_FUNCTIONS[function.name](budget, inner)


_TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")
_TENSOR_FUNCTIONS: dict[str, Callable[[Budget, tuple], Any]] = {
    "torch._utils._rebuild_tensor": lambda budget, args: _tensor(budget, *args),
    # without the type of the elements, which is its storage's
    "torch._utils._rebuild_tensor_v2": lambda budget, args: _tensor(
        budget, *args[:6], None, *args[6:]
    ),
    "torch._utils._rebuild_tensor_v3": lambda budget, args: _tensor(budget, *args),
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}


# --- NumPy, and MMEngine's histories ---------------------------------------------------------


def _dtype(budget: Budget, args: tuple) -> Unfinished:
    """Numbers, booleans and strings only, no objects or records."""
    spec = args[0]
    if not isinstance(spec, str) or not re.fullmatch(r"[biufcSU]\d{1,6}", spec):
        raise Damaged(f"array type {str(spec)[:40]!r} is not plain data")

    def finish(budget: Budget, state: Any) -> np.dtype:
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "=")):
            raise Damaged("damaged array type")
        return np.dtype(spec).newbyteorder(state[1])

    return Unfinished(finish)


def _array(budget: Budget, args: tuple) -> Unfinished:
    if not isinstance(args[0], Name) or args[0].name != "numpy.ndarray":
        raise Damaged("only plain arrays can be read")
    return Unfinished(_finish_array)


def _finish_array(budget: Budget, state: Any) -> np.ndarray:
    _, shape, dtype, fortran, data = state
    if not (
        isinstance(dtype, np.dtype)
        and isinstance(data, bytes)
        and _is_shape(shape, _MAX_ARRAY_DIMS)
        and math.prod(shape) * dtype.itemsize == len(data)
    ):
        raise Damaged("an array's type, shape and data do not fit")
    budget.spend(len(data))
    flat = np.frombuffer(data, dtype) if data else np.zeros(0, dtype)
    array = flat.reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))  # a copy: writable


def _number(budget: Budget, args: tuple) -> np.generic:
    dtype, data = args
    if not (
        isinstance(dtype, np.dtype) and isinstance(data, bytes) and len(data) == dtype.itemsize
    ):
        raise Damaged("a number's type and data do not fit")
    return np.frombuffer(data, dtype)[0]


def new_history() -> Unfinished:
    """MMEngine's ``HistoryBuffer``, the record of one logged number."""
    return Unfinished(_finish_history)


def _finish_history(budget: Budget, state: Any) -> HistoryBuffer:
    log, count = state["_log_history"], state["_count_history"]
    arrays = isinstance(log, np.ndarray) and isinstance(count, np.ndarray)
    if not (
        arrays
        and log.ndim == 1
        and log.shape == count.shape
        and {log.dtype.kind, count.dtype.kind} <= set("biuf")
        and type(state["max_length"]) is int
    ):
        raise Damaged("damaged HistoryBuffer")
    return make_history(log, count, state["max_length"])


def _statistic(budget: Budget, args: tuple) -> None:
    """``getattr``, by which HistoryBuffers name their methods; they have them anyway."""
    if not isinstance(args[0], Name) or args[0].name != HISTORY:
        raise NotAllowed("builtins.getattr")


# --- plain data -----------------------------------------------------------------------------


def _encoded(budget: Budget, args: tuple) -> bytes:
    """``_codecs.encode`` and ``bytearray`` of text, by which bytes are written."""
    text, encoding = args
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Damaged("damaged bytes")
    budget.spend(len(text))
    return text.encode("latin-1")


def _bytes(budget: Budget, args: tuple) -> bytes:
    if args:
        raise Damaged("damaged bytes")
    return b""  # old pickles write empty ones so


def _bytearray(budget: Budget, args: tuple) -> bytearray:
    if len(args) == 1 and isinstance(args[0], bytes):
        budget.spend(len(args[0]))
        return bytearray(args[0])
    return bytearray(_encoded(budget, args) if args else b"")


def _items(budget: Budget, args: tuple, *kinds: type) -> Any:
    """The one container that a constructor takes, empty without one."""
    if not args:
        return ()
    if len(args) != 1 or type(args[0]) not in kinds:
        raise Damaged("a damaged container")
    budget.spend(100 * len(args[0]))
    return args[0]


def _ordered(budget: Budget, args: tuple) -> OrderedDict:
    pairs = _items(budget, args, list)
    return OrderedDict((checked_key(key), value) for key, value in pairs)


def _size(budget: Budget, args: tuple) -> torch.Size:
    sizes = tuple(_items(budget, args, tuple, list))
    if not _is_shape(sizes):
        raise Damaged("a damaged size")
    return torch.Size(sizes)


def _device(budget: Budget, args: tuple) -> torch.device:
    if not all(type(arg) in (str, int) for arg in args):
        raise Damaged("a damaged device")
    return torch.device(*args)


def versions(budget: Budget, state: dict[Any, Any]) -> dict[str, Any]:
    """The one attribute that a module's state dict has: the versions of the module's parts."""
    found: Any = state.get("_metadata")
    if type(found) not in (dict, OrderedDict):
        return {}
    budget.spend(300 * len(found))
    result = OrderedDict()
    for part, value in found.items():
        version = value.get("version") if type(value) is dict else None
        result[part] = {} if type(version) is not int else {"version": version}
    return {"_metadata": result}


HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
_FUNCTIONS: dict[str, Callable[[Budget, tuple], Any]] = {
    **_TENSOR_FUNCTIONS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered,
    "collections.Counter": lambda budget, args: Counter(dict(_items(budget, args, dict))),
    "_codecs.encode": _encoded,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.set": lambda budget, args: set(map(checked_key, _items(budget, args, list))),
    "builtins.getattr": _statistic,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}
_CLASSES = (*_TENSOR_CLASSES, "numpy.ndarray", HISTORY)
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
)
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "storage.UntypedStorage": torch.uint8,
}
#: Every name that a pickle may use, and what it puts on the stack.
NAMES: dict[str, Any] = {
    **{f"torch.{name}": getattr(torch, name) for name in _DTYPES if hasattr(torch, name)},
    **{f"torch.{name}": StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{name: Name(name) for name in _CLASSES},
    **{name: Name(name, call) for name, call in _FUNCTIONS.items()},
}

_SCALARS = (str, int, float, bool, bytes, type(None))
_RESULTS = (
    *(*_SCALARS, bytearray, set, dict, OrderedDict, Counter, list, tuple),
    *(Tensor, nn.Parameter, torch.Size, torch.dtype, torch.device),
    *(np.ndarray, HistoryBuffer),
)


def checked_key(key: Any) -> Any:
    """A key that is a number, a text or a flat tuple of them: others could be costly to hash."""
    parts = key if type(key) is tuple and len(key) < 100 else (key,)
    if all(type(part) in _SCALARS for part in parts):
        return key
    raise Damaged("a mapping or set with a key that is neither a number nor a text")


def check_value(value: Any) -> None:
    """Raises Damaged for what only has a meaning inside a pickle, such as a name."""
    if type(value) not in _RESULTS and not isinstance(value, np.generic | np.dtype):
        raise Damaged("a name where data should be")
