# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Reads the MXNet ``.params`` format, in which GluonCV publishes its weights.

The format, all numbers little-endian (MXNet's ``NDArray::Save``, dense arrays):

=============  ==================================================================
file           u64 ``0x112``, u64 0, u64 number of arrays, the arrays, u64 number of
               names, the names
one array      u32 magic, i32 storage type (0: dense), u32 number of dims, i64 dims,
               i32 device type, i32 device id, i32 data type, the raw data
one name       u64 length, that many bytes of UTF-8
=============  ==================================================================

The magic is ``0xF993FAC9``, or ``0xF993FACA`` for files written under NumPy semantics, where an
array without dims is a scalar (under the older one it is an array without a value). Every size
is checked against what is left of the file before memory is taken for it.
"""

from __future__ import annotations

import math
import struct
from typing import BinaryIO

import numpy as np

from ..errors import UserError
from .hashes import AGAIN

FILE_MAGIC = 0x112
ARRAY_MAGIC = 0xF993FAC9
NUMPY_ARRAY_MAGIC = 0xF993FACA
# MXNet's type flags (mshadow/base.h)
DTYPES: dict[int, np.dtype] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f8"),
    2: np.dtype("<f2"),
    3: np.dtype("u1"),
    4: np.dtype("<i4"),
    5: np.dtype("i1"),
    6: np.dtype("<i8"),
}
_MAX_DIMS = 32
_MAX_NAME = 4096
# magic, storage type and number of dims: the least that an array can take
_SMALLEST_ARRAY = 12


class _Reader:
    """Reads exact amounts from a binary file and knows how much of it is left."""

    def __init__(self, file: BinaryIO, label: str) -> None:
        self.file = file
        self.label = label
        file.seek(0, 2)
        self.size = file.tell()
        file.seek(0)
        self.place = "its header"

    @property
    def left(self) -> int:
        return self.size - self.file.tell()

    def refuse(self, reason: str) -> UserError:
        message = f"not a usable MXNet .params file: {reason} (at {self.place}); {AGAIN}"
        return UserError("corrupt", self.label, message)

    def take(self, count: int) -> bytearray:
        if count > self.left:
            raise self.refuse(f"it ends early: {count} bytes wanted, {self.left} left")
        data = bytearray(count)
        if self.file.readinto(data) != count:  # type: ignore[attr-defined]
            raise self.refuse("it could not be read to its end")
        return data

    def number(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]


def _read_array(reader: _Reader) -> np.ndarray:
    magic = reader.number("I")
    if magic not in (ARRAY_MAGIC, NUMPY_ARRAY_MAGIC):
        raise reader.refuse(f"unknown array format {magic:#x}")
    storage = reader.number("i")
    if storage != 0:
        raise reader.refuse(f"sparse storage (type {storage}) is not supported")
    ndim = reader.number("I")
    if ndim > _MAX_DIMS:
        raise reader.refuse(f"an array with {ndim} dimensions")
    if ndim == 0 and magic == ARRAY_MAGIC:
        raise reader.refuse("an array without a value")
    shape = tuple(reader.number("q") for _ in range(ndim))
    if any(size < 1 for size in shape):
        raise reader.refuse(f"an array of shape {shape}")
    reader.take(8)  # device type and id: where the writer kept it
    flag = reader.number("i")
    if flag not in DTYPES:
        raise reader.refuse(f"unknown data type {flag}")
    dtype = DTYPES[flag]
    data = reader.take(math.prod(shape) * dtype.itemsize)
    array = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def read_params(file: BinaryIO, label: str) -> dict[str, np.ndarray]:
    """Reads one MXNet ``.params`` file.

    Returns:
        The arrays, writable, in the order of the file, under their names without ``arg:`` and
        ``aux:``.

    Raises:
        UserError: The file is truncated, damaged, of another format, holds sparse arrays or
            unknown types, or does not name each array once.
    """
    reader = _Reader(file, label)
    if reader.number("Q") != FILE_MAGIC:
        raise reader.refuse("it does not start with the number of this format")
    if reader.number("Q") != 0:
        raise reader.refuse("a reserved field is in use")
    count = reader.number("Q")
    if count > reader.left // _SMALLEST_ARRAY:
        raise reader.refuse(f"it claims {count} arrays in {reader.left} bytes")
    arrays = []
    for index in range(count):
        reader.place = f"array {index + 1} of {count}"
        arrays.append(_read_array(reader))
    reader.place = "its list of names"
    names = reader.number("Q")
    if names != count:
        raise reader.refuse(f"{count} arrays and {names} names")
    result: dict[str, np.ndarray] = {}
    for index, array in enumerate(arrays):
        reader.place = f"name {index + 1} of {count}"
        length = reader.number("Q")
        if length > _MAX_NAME:
            raise reader.refuse(f"a name of {length} bytes")
        try:
            name = reader.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise reader.refuse("a name is not UTF-8") from error
        name = name.removeprefix("arg:").removeprefix("aux:")
        if not name or name in result:
            raise reader.refuse(f"the name {name[:80]!r} is {'used twice' if name else 'empty'}")
        result[name] = array
    if reader.left:
        raise reader.refuse(f"{reader.left} bytes follow its end")
    return result
