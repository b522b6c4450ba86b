# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Label maps in MATLAB's files: as SciPy writes them, and files that end or fill a process."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from user_errors import raises_user_error

from mmseg_resnest.datasets.prepare.mat_files import read_label_matrix
from mmseg_resnest.errors import UserError

LABELS = np.random.default_rng(0).integers(0, 60, (7, 5))


def saved(compressed: bool = True, **variables: Any) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables, do_compression=compressed)
    return stream.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "i8", "f4", "f8"])
def test_a_matrix_and_a_field(kind: str, compressed: bool) -> None:
    labels = LABELS.astype(kind)
    data = saved(compressed, other=np.zeros(3), LabelMap=labels)
    np.testing.assert_array_equal(read_label_matrix(data, "x", "LabelMap"), LABELS)
    boundaries = np.empty(20, dtype=object)
    boundaries[:] = [scipy.sparse.csc_matrix(np.eye(3)) for _ in range(20)]
    structure = dict(Boundaries=boundaries, Segmentation=labels, CategoriesPresent=[1, 2])
    data = saved(compressed, GTcls=structure)
    found = read_label_matrix(data, "x", "GTcls", "Segmentation")
    np.testing.assert_array_equal(found, LABELS)
    assert found.dtype == np.int64


OTHERS = {
    "text": saved(LabelMap="abc"),
    "objects": saved(LabelMap=np.array([[1, "a"]], dtype=object)),
    "complex": saved(LabelMap=np.array([[1 + 1j]])),
    "fractions": saved(LabelMap=np.array([[0.5]])),
    "not a number": saved(LabelMap=np.array([[np.nan]])),
    "three dimensions": saved(LabelMap=np.zeros((2, 2, 2))),
    "empty": saved(LabelMap=np.zeros((0, 3))),
    "sparse": saved(LabelMap=scipy.sparse.csc_matrix(np.eye(3))),
    "structure": saved(LabelMap={"a": 1}),
    "another variable": saved(Labels=LABELS),
    "nothing": b"",
    "zeros": bytes(4096),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(200),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files(name: str) -> None:
    with raises_user_error("format", "a.mat"):
        read_label_matrix(OTHERS[name], "a.mat", "LabelMap")
    with raises_user_error("format", "a.mat"):
        read_label_matrix(OTHERS[name], "a.mat", "LabelMap", "Segmentation")


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(kind: int, shape: tuple[int, int], name: bytes, rest: bytes) -> bytes:
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<ii", *shape))
    return element(14, head + element(1, name) + rest)


HEADER = bytes(124) + b"\x00\x01IM"


def test_cells_nested_deep_do_not_end_the_process() -> None:
    head = element(6, struct.pack("<II", 1, 0)) + element(5, struct.pack("<ii", 1, 1))
    parts, size = [], 0
    for name in [b""] * 200_000 + [b"LabelMap"]:
        opening = head + element(1, name)
        size += len(opening)
        parts.append(struct.pack("<II", 14, size) + opening)
        size += 8
    with raises_user_error("format", "a.mat"):
        read_label_matrix(HEADER + b"".join(reversed(parts)), "a.mat", "LabelMap")


def test_sizes_that_a_file_only_claims() -> None:
    numbers = element(2, bytes(4))
    for shape in ((2**31 - 1, 2**31 - 1), (-2, -2), (2, 3), (0, 0)):
        with raises_user_error("format", "a.mat"):
            read_label_matrix(HEADER + matrix(9, shape, b"L", numbers), "a.mat", "L")
    bomb = zlib.compress(bytes(1 << 27), 9)
    with raises_user_error("format", "a.mat"):
        read_label_matrix(HEADER + struct.pack("<II", 15, len(bomb)) + bomb, "a.mat", "L")


@given(st.data())
def test_any_damage_is_an_error_in_words_or_none(data: st.DataObject) -> None:
    whole = bytearray(saved(False, GTcls=dict(Segmentation=LABELS.astype("u1"))))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(whole)))
    try:
        found = read_label_matrix(bytes(whole[:end]), "a.mat", "GTcls", "Segmentation")
    except UserError:
        return
    assert found.ndim == 2
