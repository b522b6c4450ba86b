# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Reads the ``.safetensors`` format.

A u64 (little-endian) with the length of a header, the header, which is JSON, and the data of the
tensors without gaps. The header maps names to ``dtype``, ``shape`` and ``data_offsets``. It is read
here, not with the package of that name, which takes the last of two entries with one name.
"""

from __future__ import annotations

import json
import math
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from ..errors import UserError
from ..io.json_files import parse_json
from .hashes import AGAIN

#: As the format says.
MAX_HEADER = 100_000_000
_METADATA = "__metadata__"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class _Unusable(Exception):
    """The file does not have this form."""


def read_safetensors(file: BinaryIO, label: str) -> dict[str, Tensor]:
    """The tensors of a file, in the order of its header.

    Raises:
        UserError: The file is truncated, damaged, of another format, names a tensor twice, or
            holds a type that PyTorch lacks.
    """
    try:
        return _read(file)
    except (_Unusable, OSError) as error:
        message = f"not a usable .safetensors file ({error}); {AGAIN}"
        raise UserError("corrupt", label, message) from error


def _read(file: BinaryIO) -> dict[str, Tensor]:
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise _Unusable("it ends before its header")
    text = file.read(length)
    try:
        header = parse_json(text, "its header")
    except UserError as error:
        raise _Unusable(error.text) from error
    if not isinstance(header, dict):
        raise _Unusable("its header is not an object")
    _refuse_duplicates(text)
    places = {name: _place(name, entry) for name, entry in header.items() if name != _METADATA}
    position = 0
    for name, (_, _, start, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if start != position:
            raise _Unusable(f"{_short(name)}: data that overlaps, or belongs to no tensor")
        position = end
    if position != size - 8 - length:
        raise _Unusable("its data is longer or shorter than its header says")
    tensors = {}
    for name, (dtype, shape, start, end) in places.items():
        data = torch.empty(end - start, dtype=torch.uint8)
        file.seek(8 + length + start)
        if data.numel() and cast(Any, file).readinto(data.numpy()) != end - start:
            raise _Unusable("it ends early")
        try:
            tensors[name] = data.view(dtype).reshape(shape)
        except (RuntimeError, OverflowError, TypeError) as error:
            raise _Unusable(f"{_short(name)}: damaged shape") from error
    return tensors


def _short(name: str) -> str:
    return repr(name[:80])


def _refuse_duplicates(text: bytes) -> None:
    def checked(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise _Unusable(f"it has {_short(twice)} twice")

    json.loads(text, object_pairs_hook=checked)  # parsed before, so it parses


def _place(name: str, entry: Any) -> tuple[torch.dtype, list[int], int, int]:
    """Type, shape, and where the data starts and ends."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Unusable(f"{_short(name)}: a damaged entry")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise _Unusable(f"{_short(name)}: an unknown type {str(kind)[:20]!r}")
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not lists or len(shape) > 64 or any(type(n) is not int or n < 0 for n in shape + offsets):
        raise _Unusable(f"{_short(name)}: a damaged entry")
    dtype = _DTYPES[kind]
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise _Unusable(f"{_short(name)}: its shape and its data do not fit")
    return dtype, shape, offsets[0], offsets[1]
