# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""What the names in a pickle stand for: the table of everything that one may use.

A name is a value, or a function of this file that checks what it is given. None of the things that
the names mean elsewhere is ever called.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from .._stack import make_history

_MAX_DIMS = 64


class NotAllowed(Exception):
    """A pickle asks for something that is not plain data.

    Attributes:
        name: What it asks for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Damaged(Exception):
    """A pickle does not have the form that ``torch.save`` gives it."""


class Budget:
    """How many bytes may be allocated while one file is read.

    Args:
        limit: Bytes.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit

    def spend(self, count: int) -> None:
        """Count an allocation.

        Raises:
            Damaged: There is no budget left for it.
        """
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
    """Memory for tensors.

    Args:
        data: (number of bytes,), uint8.
        dtype: The elements' type.
    """

    __slots__ = ("bytes", "dtype", "untyped")

    def __init__(self, data: Tensor, dtype: torch.dtype) -> None:
        self.bytes = data
        self.untyped = data.untyped_storage()
        self.dtype = dtype


class ArrayType:
    """``numpy.dtype``: numbers, booleans and strings only, no objects or records."""

    def __init__(self, spec: Any) -> None:
        if not isinstance(spec, str) or not re.fullmatch(r"[biufcSU]\d{1,6}", spec):
            raise Damaged(f"array type {str(spec)[:40]!r} is not plain data")
        self.dtype = np.dtype(spec)

    def build(self, state: Any) -> None:
        """Set the byte order."""
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "=")):
            raise Damaged("damaged array type")
        self.dtype = self.dtype.newbyteorder(state[1])


class Array:
    """``numpy.ndarray``."""

    value: np.ndarray | None = None

    def build(self, state: Any, budget: Budget) -> None:
        """Set shape, type and data."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise Damaged("damaged array")
        _, shape, kind, fortran, data = state
        if (
            not isinstance(kind, ArrayType)
            or not isinstance(data, bytes)
            or not _is_shape(shape)
            or len(shape) > 32
            or math.prod(shape) * kind.dtype.itemsize != len(data)
        ):
            raise Damaged("an array's type, shape and data do not fit")
        budget.spend(len(data))
        flat = np.frombuffer(data, kind.dtype) if data else np.zeros(0, kind.dtype)
        array = flat.reshape(shape, order="F" if fortran else "C")
        self.value = array.astype(kind.dtype.newbyteorder("="))  # a copy: writable


class History:
    """MMEngine's ``HistoryBuffer``, the record of one logged number."""

    state: Mapping[str, Any] | None = None

    def buffer(self) -> HistoryBuffer:
        """The history itself."""
        state = self.state or {}
        log, count = plain(state.get("_log_history")), plain(state.get("_count_history"))
        length = state.get("max_length")
        if (
            not isinstance(log, np.ndarray)
            or not isinstance(count, np.ndarray)
            or type(length) is not int
            or log.ndim != 1
            or log.shape != count.shape
            or log.dtype.kind not in "biuf"
            or count.dtype.kind not in "biuf"
        ):
            raise Damaged("damaged HistoryBuffer")
        return make_history(log, count, length)


# --- tensors --------------------------------------------------------------------------------


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(size) is int and size >= 0 for size in value)


def _tensor(
    budget: Budget, storage: Any, dtype: Any, offset: Any, size: Any, stride: Any
) -> Tensor:
    """A tensor that lies within its storage."""
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise Damaged("a tensor without a storage")
    if (
        not _is_shape(size)
        or not _is_shape(stride)
        or not _is_shape((offset,))
        or len(size) != len(stride)
        or len(size) > _MAX_DIMS
    ):
        raise Damaged("a tensor with a damaged shape")
    count = math.prod(size)
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else -1
    if (offset + last + 1) * dtype.itemsize > storage.untyped.nbytes():
        raise Damaged("a tensor reaches beyond its storage")
    budget.spend(count * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage.untyped, offset, size, stride)


def _finish_tensor(tensor: Tensor, requires_grad: Any, metadata: Any) -> Tensor:
    if metadata:
        raise Damaged("a tensor that is conjugate or negative by a flag")
    if requires_grad is True and (tensor.is_floating_point() or tensor.is_complex()):
        tensor.requires_grad_()
    return tensor


def _rebuild_tensor(budget: Budget, args: tuple) -> Tensor:
    storage, offset, size, stride = args
    return _tensor(budget, storage, getattr(storage, "dtype", None), offset, size, stride)


def _rebuild_tensor_v2(budget: Budget, args: tuple) -> Tensor:
    storage, offset, size, stride, requires_grad, _hooks, *metadata = args
    tensor = _rebuild_tensor(budget, (storage, offset, size, stride))
    return _finish_tensor(tensor, requires_grad, any(metadata))


def _rebuild_tensor_v3(budget: Budget, args: tuple) -> Tensor:
    storage, offset, size, stride, requires_grad, _hooks, dtype, *metadata = args
    tensor = _tensor(budget, storage, dtype, offset, size, stride)
    return _finish_tensor(tensor, requires_grad, any(metadata))


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
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}


# --- plain data -----------------------------------------------------------------------------


def _array(budget: Budget, args: tuple) -> Array:
    if not isinstance(args[0], Name) or args[0].name != "numpy.ndarray":
        raise Damaged("only plain arrays can be read")
    return Array()


def _number(budget: Budget, args: tuple) -> np.generic:
    kind, data = args
    if not isinstance(kind, ArrayType) or not isinstance(data, bytes):
        raise Damaged("damaged number")
    if len(data) != kind.dtype.itemsize:
        raise Damaged("a number's type and data do not fit")
    return np.frombuffer(data, kind.dtype)[0]


def _statistic(budget: Budget, args: tuple) -> None:
    """``getattr``, by which HistoryBuffers name their methods; they have them anyway."""
    if not isinstance(args[0], Name) or args[0].name != HISTORY:
        raise NotAllowed("builtins.getattr")


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


def _set(budget: Budget, args: tuple) -> set:
    return {checked_key(item) for item in _items(budget, args, list)}


def _ordered(budget: Budget, args: tuple) -> OrderedDict:
    pairs = _items(budget, args, list)
    return OrderedDict((checked_key(key), value) for key, value in pairs)


def _counter(budget: Budget, args: tuple) -> Counter:
    return Counter(dict(_items(budget, args, dict)))


def _size(budget: Budget, args: tuple) -> torch.Size:
    sizes = _items(budget, args, tuple, list)
    if len(sizes) > _MAX_DIMS or not _is_shape(tuple(sizes)):
        raise Damaged("a damaged size")
    return torch.Size(sizes)


def versions(budget: Budget, state: dict[Any, Any]) -> dict[str, Any]:
    """The one attribute that a module's state dict has: the versions of the module's parts."""
    found: Any = state.get("_metadata")
    if type(found) not in (dict, OrderedDict):
        return {}
    budget.spend(300 * len(found))
    versions = OrderedDict()
    for part, value in found.items():
        version = value.get("version") if type(value) is dict else None
        versions[part] = {} if type(version) is not int else {"version": version}
    return {"_metadata": versions}


def _complex(budget: Budget, args: tuple) -> complex:
    if len(args) != 2 or not all(type(part) in (int, float) for part in args):
        raise Damaged("a damaged number")
    return complex(*args)


def _device(budget: Budget, args: tuple) -> torch.device:
    if not all(type(arg) in (str, int) for arg in args):
        raise Damaged("a damaged device")
    return torch.device(*args)


def _layout(budget: Budget, args: tuple) -> torch.layout:
    if args != ("torch.strided",):
        raise Damaged("a tensor that is not dense")
    return torch.strided


HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
_FUNCTIONS: dict[str, Callable[[Budget, tuple], Any]] = {
    **_TENSOR_FUNCTIONS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.serialization._get_layout": _layout,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "_codecs.encode": _encoded,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.set": _set,
    "builtins.complex": _complex,
    "builtins.getattr": _statistic,
    "numpy.dtype": lambda budget, args: ArrayType(args[0]),
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}
_CLASSES = (*_TENSOR_CLASSES, "numpy.ndarray", HISTORY)
_DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
        *("int64", "int32", "int16", "int8", "uint8", "bool", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    )
    if hasattr(torch, name)
}
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
    **_DTYPES,
    **{f"torch.{name}": StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{name: Name(name) for name in _CLASSES},
    **{name: Name(name, call) for name, call in _FUNCTIONS.items()},
}


# --- keys and results ------------------------------------------------------------------------

_SCALARS = (str, int, float, bool, bytes, complex, type(None))


def checked_key(key: Any) -> Any:
    """A key that is a number, a text or a flat tuple of them: others could be costly to hash."""
    if type(key) in _SCALARS:
        return key
    if type(key) is tuple and len(key) < 100 and all(type(part) in _SCALARS for part in key):
        return key
    raise Damaged("a mapping or set with a key that is neither a number nor a text")


_RESULTS = (
    *(*_SCALARS, bytearray, set, dict, OrderedDict, Counter, list, tuple),
    *(Tensor, nn.Parameter, torch.Size, torch.dtype, torch.device, torch.layout),
)


def plain(value: Any, memo: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """``value`` with arrays and histories in place of what stands for them.

    ``memo`` maps ids to (object, result); it keeps the objects, so that no id is used again.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)][1]
    result: Any = value
    if isinstance(value, Array):
        if value.value is None:
            raise Damaged("an array without a value")
        result = value.value
    elif isinstance(value, History):
        result = value.buffer()
    elif isinstance(value, ArrayType):
        result = value.dtype
    elif isinstance(value, dict):
        for key in value:  # in place, so that what holds it holds the result
            value[key] = plain(value[key], memo)
    elif isinstance(value, list):
        value[:] = [plain(item, memo) for item in value]
    elif type(value) is tuple:
        result = tuple(plain(item, memo) for item in value)
    elif type(value) not in _RESULTS and not isinstance(value, np.generic):
        raise Damaged("a name where data should be")
    memo[id(value)] = value, result
    return result
