# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""MXNet's .params format, against a writer of the format made here."""

from __future__ import annotations

import io
import math
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from user_errors import raises_user_error

from mmseg_resnest.errors import UserError
from mmseg_resnest.weights.mxnet_params import ARRAY_MAGIC, NUMPY_ARRAY_MAGIC, read_params

TYPES = ["float32", "float64", "float16", "uint8", "int32", "int8", "int64"]


def write_array(array: np.ndarray, magic: int = ARRAY_MAGIC) -> bytes:
    head = struct.pack("<IiI", magic, 0, array.ndim) + struct.pack(f"<{array.ndim}q", *array.shape)
    flag = TYPES.index(array.dtype.name)
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return head + struct.pack("<iii", 1, 0, flag) + data


def write_params(arrays: dict[str, np.ndarray], magic: int = ARRAY_MAGIC) -> bytes:
    body = b"".join(write_array(array, magic) for array in arrays.values())
    names = b"".join(struct.pack("<Q", len(name.encode())) + name.encode() for name in arrays)
    count = struct.pack("<Q", len(arrays))
    return struct.pack("<QQ", 0x112, 0) + count + body + count + names


def read(data: bytes) -> dict[str, np.ndarray]:
    return read_params(io.BytesIO(data), "some.params")


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)


@given(
    magic=st.sampled_from([ARRAY_MAGIC, NUMPY_ARRAY_MAGIC]),
    arrays=st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda t: not t.startswith(("arg:", "aux:"))),
        st.tuples(st.sampled_from(TYPES), SHAPES, st.integers(0, 2**32)),
        max_size=6,
    ),
)
@settings(max_examples=50, deadline=None)
def test_every_type_and_both_formats(magic, arrays):
    made = {}
    for name, (kind, shape, seed) in arrays.items():
        rng = np.random.default_rng(seed)
        raw = rng.integers(0, 256, math.prod(shape) * np.dtype(kind).itemsize, dtype=np.uint8)
        made[name] = np.frombuffer(raw.tobytes(), kind).reshape(shape)
    result = read(write_params(made, magic))
    assert list(result) == list(made)
    for name, array in made.items():
        assert result[name].dtype == array.dtype
        assert result[name].shape == array.shape
        assert result[name].tobytes() == array.tobytes()
        assert result[name].flags.writeable


def test_a_file_written_by_hand():
    """Bytes put together from the format's description, not by the writer above."""
    data = bytes.fromhex(
        "1201000000000000"
        "0000000000000000"
        "0100000000000000"  # magic, reserved, one array
        "c9fa93f9"
        "00000000"
        "02000000"  # magic, dense, two dims
        "0100000000000000"
        "0200000000000000"  # 1 x 2
        "01000000"
        "00000000"
        "00000000"  # CPU, device 0, float32
        "0000803f"
        "000000c0"  # 1.0, -2.0
        "0100000000000000"
        "0500000000000000"
        "6172673a77"  # one name: arg:w
    )
    result = read(data)
    assert list(result) == ["w"]
    assert result["w"].tolist() == [[1.0, -2.0]]


def test_prefixes_go():
    one, two = np.ones(1, np.float32), np.zeros(2, np.int64)
    result = read(write_params({"arg:bn.gamma": one, "aux:bn.running_mean": two}))
    assert list(result) == ["bn.gamma", "bn.running_mean"]
    with raises_user_error("corrupt", "some.params"):
        read(write_params({"arg:w": one, "aux:w": two}))


def test_numpy_scalars():
    value = np.float64(2.5).reshape(())
    assert read(write_params({"x": value}, NUMPY_ARRAY_MAGIC))["x"] == 2.5
    with raises_user_error("corrupt", "some.params"):
        read(write_params({"x": value}, ARRAY_MAGIC))


EXAMPLE = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "bn.gamma": np.ones(3, np.float16),
    "count": np.array([7], np.int64),
}


def test_every_truncation_is_refused():
    data = write_params(EXAMPLE)
    assert list(read(data)) == list(EXAMPLE)
    for length in range(len(data)):
        with raises_user_error("corrupt", "some.params"):
            read(data[:length])


@given(position=st.integers(0, 10**6), value=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_only_a_value(position, value):
    """No change of one byte leads anywhere but to arrays or to a UserError."""
    data = bytearray(write_params(EXAMPLE))
    data[position % len(data)] ^= value
    try:
        result = read(bytes(data))
    except UserError:
        return
    assert len(result) == len(EXAMPLE)
    assert sum(a.nbytes for a in result.values()) == sum(a.nbytes for a in EXAMPLE.values())


HEAD = struct.pack("<QQQ", 0x112, 0, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<QQQ", 0x113, 0, 0),
        struct.pack("<QQQ", 0x112, 1, 0),
        struct.pack("<QQQ", 0x112, 0, 2**60),
        HEAD + struct.pack("<IiI", 0xF993FAC8, 0, 1) + bytes(8),
        HEAD + struct.pack("<IiI", ARRAY_MAGIC, 1, 1) + bytes(8),
        HEAD + struct.pack("<IiI", ARRAY_MAGIC, 0, 2**31) + bytes(8),
        HEAD + struct.pack("<IiIq", ARRAY_MAGIC, 0, 1, -1) + bytes(12),
        HEAD + struct.pack("<IiIq", ARRAY_MAGIC, 0, 1, 0) + bytes(12),
        HEAD + struct.pack("<IiIqiii", ARRAY_MAGIC, 0, 1, 1, 1, 0, 7),
        HEAD + struct.pack("<IiIqqqiii", ARRAY_MAGIC, 0, 3, *[2**40] * 3, 1, 0, 0),
        write_params({"x": np.ones(1)}) + b"\0",
        write_params({"": np.ones(1)}),
        write_params({"x": np.ones(1)})[:-9] + struct.pack("<Q", 2**50) + b"x",
        write_params({"x": np.ones(1)})[:-1] + b"\xff",
        write_params({"x": np.ones(1)})[:-17] + struct.pack("<Q", 0),
    ],
)
def test_impossible_files(data):
    with raises_user_error("corrupt", "some.params"):
        read(data)


def test_no_memory_is_taken_for_claims():
    claim = HEAD + struct.pack("<IiIqiii", ARRAY_MAGIC, 0, 1, 2**33, 1, 0, 0) + bytes(100)
    tracemalloc.start()
    try:
        with raises_user_error("corrupt", "some.params"):
            read(claim)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
