# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Label maps in MATLAB's files (version 5), read without following what else such a file may hold.

SciPy's reader takes any such file; one whose cells are nested some thousand deep ends the process,
and one of a few kilobytes may unpack to many gigabytes. Label maps need little of the format: a
matrix of numbers, by itself or as a field of one structure.

Source: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ...errors import UserError

_MOST_BYTES = 1 << 26  # of a variable, unpacked: a label map of 8000x8000 in bytes
_MATRIX, _COMPRESSED = 14, 15
_STRUCTURE = 2
_NUMBERS = range(6, 16)  # array classes: double, single, 8-bit to 64-bit integers
# Storage types of numbers.
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_TYPES |= {12: "i8", 13: "u8"}


def read_label_matrix(
    data: bytes, name: object, variable: str, field: str | None = None
) -> npt.NDArray[np.int64]:
    """The whole numbers (H, W) of a variable, or of a field of it where it is a structure.

    Raises:
        UserError: It is not such a file, holds no such matrix, or is larger than label maps are.
            ``name`` is the subject.
    """
    try:
        order = {b"IM": "<", b"MI": ">"}.get(data[126:128], "")
        if not order:
            raise ValueError("it does not start as one")
        for body in _variables(data, order):
            matrix = _Matrix(body, order)
            if matrix.name == variable:
                return _whole(matrix.field(field) if field else matrix)
        raise ValueError(f"it has no variable {variable}")
    except (ValueError, KeyError, IndexError, struct.error, zlib.error) as error:
        message = f"is not a MATLAB file of labels ({error}); get it again"
        raise UserError("format", name, message) from error


def _elements(
    data: memoryview, order: str, padded: bool = True
) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each element."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # a small element holds its content in the tag
            kind, size, start, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start, after = at + 8, at + 8 + size + (-size % 8 if padded else 0)
        if start + size > len(data):
            raise ValueError("it ends early")
        yield kind, data[start : start + size]
        at = after


def _variables(data: bytes, order: str) -> Iterator[memoryview]:
    """The content of each variable, unpacked."""
    for kind, content in _elements(memoryview(data)[128:], order, padded=False):
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(content, _MOST_BYTES + 1)
            if len(unpacked) > _MOST_BYTES:
                raise ValueError(f"a variable has more than {_MOST_BYTES:,} bytes")
            kind, content = next(_elements(memoryview(unpacked), order), (0, content))
        if kind == _MATRIX:
            yield content


class _Matrix:
    """A variable, or a field of one, from the content of its element."""

    def __init__(self, body: memoryview, order: str) -> None:
        self.order = order
        self.parts = _elements(body, order)
        flags, dims, name = (self._next() for _ in range(3))
        (word,) = struct.unpack_from(f"{order}I", flags)
        self.kind = word & 0xFF
        self.is_complex = bool(word & 0x0800)
        self.shape = tuple(np.frombuffer(dims, f"{order}i4").tolist())
        self.name = bytes(name).decode("latin-1")

    def _next(self) -> memoryview:
        part = next(self.parts, None)
        if part is None:
            raise ValueError("it ends early")
        return part[1]

    def field(self, name: str) -> _Matrix:
        """A field of a structure of one element."""
        if self.kind != _STRUCTURE or self.shape != (1, 1):
            raise ValueError(f"{self.name} is not one structure")
        (length,) = struct.unpack_from(f"{self.order}i", self._next())
        names = bytes(self._next())
        if length < 1:
            raise ValueError("its fields have no names")
        for start in range(0, len(names), length):
            part = next(self.parts, (0, memoryview(b"")))
            if names[start : start + length].split(b"\0")[0].decode("latin-1") == name:
                return _Matrix(part[1], self.order)
        raise ValueError(f"{self.name} has no field {name}")

    def numbers(self) -> npt.NDArray[np.generic]:
        """The matrix."""
        if self.kind not in _NUMBERS or self.is_complex or len(self.shape) != 2:
            raise ValueError("it is not a matrix of real numbers")
        kind, content = next(self.parts, (0, memoryview(b"")))
        values = np.frombuffer(content, self.order + _TYPES[kind])
        if min(self.shape) < 1 or self.shape[0] * self.shape[1] != len(values):
            raise ValueError(f"{len(values)} numbers are not {self.shape[0]} x {self.shape[1]}")
        return values.reshape(self.shape, order="F")


def _whole(matrix: _Matrix) -> npt.NDArray[np.int64]:
    numbers = matrix.numbers()
    with np.errstate(invalid="ignore"):
        whole = numbers.astype(np.int64)
    if numbers.dtype.kind == "f" and not (whole == numbers).all():
        raise ValueError("a label is not a whole number")
    return whole
