# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Hostile checkpoints: every one is refused in words, within memory that its size bounds."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from test_mxnet_params import write_params
from user_errors import raises_user_error

from mmseg_resnest.errors import UserError
from mmseg_resnest.weights import load_checkpoint
from mmseg_resnest.weights.load import load_record

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(5), "c": torch.ones(3).half()}
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def torch_bytes(record, zipped=True) -> bytes:
    buffer = io.BytesIO()
    torch.save(record, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def refused(path: Path, data: bytes, *codes: str) -> None:
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_record(path)
    assert caught.value.code in (codes or ("corrupt", "checkpoint-unsafe", "checkpoint"))
    assert str(path) in caught.value.subject and "\n" not in str(caught.value)


def archive(pickled: bytes, storages: dict[str, bytes] | None = None, **members: bytes) -> bytes:
    """A file in torch's form around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
        for key, data in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
        for name, data in members.items():
            file.writestr(f"archive/{name}", data)
    return buffer.getvalue()


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


class Reference:
    """Pickles as a persistent id."""

    def __init__(self, count, key="0", kind=torch.FloatStorage):
        self.id = ("storage", kind, key, "cpu", count)


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Reference) else None


def pickled(value) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def tensor(size, stride, count=4, offset=0, **options):
    rebuild = torch._utils._rebuild_tensor_v2
    reference = Reference(count, **options)
    return Call(rebuild, reference, offset, size, stride, False, collections.OrderedDict())


# --- two directories ------------------------------------------------------------------------


def end_record(data: bytes) -> int:
    return data.rfind(b"PK\5\6")


def two_archives() -> tuple[bytes, bytes]:
    return torch_bytes({"a": torch.zeros(2)}), torch_bytes({"a": torch.ones(2)})


def with_comment(data: bytes, comment: bytes) -> bytes:
    return data[:-2] + struct.pack("<H", len(comment)) + comment


def changed(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def ambiguous() -> dict[str, bytes]:
    one, other = two_archives()
    plain = archive(pickled(WEIGHTS["b"].item()))
    entry = plain.find(b"PK\1\2")
    local = struct.unpack_from("<L", plain, entry + 42)[0]
    end = one[end_record(one) :]
    located = one.rfind(b"PK\6\7")
    doubled = io.BytesIO()
    with zipfile.ZipFile(doubled, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python, about this very thing
        file.writestr("archive/data.pkl", pickled({}))
        file.writestr("archive/data.pkl", pickled({"a": 1}))
    return {
        "an archive in the comment": with_comment(one, other),
        "an end record in the comment": with_comment(one, end),
        "an end signature in the comment": with_comment(one, b"PK\5\6"),
        "an archive before": one + other,
        "bytes before": b"PK\3\4" + bytes(60) + one,
        "bytes after": one + b"\0",
        "bytes before the end": one[: end_record(one)] + bytes(4) + end,
        "bytes before the directory": plain[:entry] + b"junk" + plain[entry:],
        "an end record that is too short": with_comment(one, b"abc")[:-1],
        "a moved 64-bit record": changed(one, located + 8, struct.pack("<Q", 0)),
        "another count of 64 bits": changed(one, located - 24, struct.pack("<Q", 1)),
        "several disks": changed(one, end_record(one) + 4, b"\1\0"),
        "fewer members": changed(plain, end_record(plain) + 8, b"\1\0\1\0"),
        "a local name that differs": changed(plain, local + 30, b"Archive"),
        "a local method that differs": changed(plain, local + 8, b"\x08\0"),
        "a local size that differs": changed(plain, local + 18, b"\1\0\0\0"),
        "a packed size that differs": changed(plain, entry + 24, b"\1\0\0\0"),
        "a local header elsewhere": changed(plain, entry + 42, struct.pack("<L", 1)),
        "a size beyond the end": changed(plain, entry + 20, struct.pack("<LL", 9999, 9999)),
        "members that overlap": changed(
            plain, plain.find(b"PK\1\2", entry + 1) + 42, struct.pack("<L", 0)
        ),
        "a name twice": doubled.getvalue(),
    }


@pytest.mark.parametrize("name", ambiguous())
def test_an_archive_about_which_readers_could_disagree(tmp_path, name):
    refused(tmp_path / "weights.pth", ambiguous()[name], "corrupt")


def test_a_comment_is_fine(tmp_path):
    """Checkpoints of training have one with their checksum."""
    path = tmp_path / "weights.pth"
    path.write_bytes(with_comment(torch_bytes(WEIGHTS), b'mmseg-resnest checkpoint {"a": 1}'))
    assert torch.equal(load_checkpoint(path)["a"], WEIGHTS["a"])


def test_without_checksums(tmp_path):
    path = tmp_path / "weights.pth"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(load_checkpoint(path)["a"], WEIGHTS["a"])


def test_programs_are_refused(tmp_path):
    code = {"code/__torch__.py": b"pass", "constants.pkl": b"\x80\2)."}
    for name in code:
        refused(tmp_path / "weights.pt", archive(b"\x80\2}.", **{name: code[name]}), "format")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as file:
        file.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    refused(tmp_path / "weights.pth", tar.getvalue(), "format")


# --- pickles that claim more than there is --------------------------------------------------

HUGE = 10**12
DATA = struct.pack("<4f", 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("value", "storages"),
    [
        (tensor((HUGE,), (0,)), {"0": DATA}),
        (tensor((1000, 1000, 1000), (0, 0, 0)), {"0": DATA}),
        (tensor((2**62, 4), (0, 1)), {"0": DATA}),
        (tensor((2**40, 2**40, 2**40), (0, 0, 0)), {"0": DATA}),
        (tensor((5,), (1,)), {"0": DATA}),
        (tensor((4,), (1,), offset=1), {"0": DATA}),
        (tensor((2,), (HUGE,)), {"0": DATA}),
        (tensor((2,), (-1,), offset=2), {"0": DATA}),
        (tensor((-1,), (1,)), {"0": DATA}),
        (tensor((1,), (1,), offset=-1), {"0": DATA}),
        (tensor((1.0,), (1,)), {"0": DATA}),
        (tensor((True,), (1,)), {"0": DATA}),
        (tensor([4], (1,)), {"0": DATA}),
        (tensor((4,), ()), {"0": DATA}),
        (tensor((1,) * 100, (1,) * 100), {"0": DATA}),
        (tensor((1,), (1,), count=HUGE), {"0": DATA}),
        (tensor((1,), (1,), count=8), {"0": DATA}),
        (tensor((1,), (1,), count=3), {"0": DATA}),
        (tensor((1,), (1,), count=-4), {"0": DATA}),
        (tensor((1,), (1,), count=True), {"0": DATA}),
        (tensor((1,), (1,), key="1"), {"0": DATA}),
        (tensor((1,), (1,), key="../data.pkl"), {"0": DATA}),
        (tensor((1,), (1,), kind=torch.DoubleStorage), {"0": DATA}),
        ([tensor((1,), (1,)), tensor((1,), (1,), kind=torch.IntStorage)], {"0": DATA}),
        (Call(torch._utils._rebuild_tensor_v2, 3, 0, (1,), (1,), False, {}), {}),
        (Call(torch._utils._rebuild_parameter, 3, False, {}), {}),
        (
            Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (HUGE,), (1,), False),
            {},
        ),
        (Call(bytearray, HUGE), {}),
        (Call(bytearray, [1, 2]), {}),
        (Call(set, {1: 2}), {}),
        (Call(collections.Counter, "text"), {}),
        (Call(torch.Size, (HUGE, -1)), {}),
        (Call(torch.device, None), {}),
        (Reference(4), {"0": DATA}),
        (torch.FloatStorage, {}),
        (torch.Tensor, {}),
        (collections.OrderedDict, {}),
        ({(1, (2, 3)): 1}, {}),
        ({torch.float32: 1}, {}),
        ({frozenset([1]): 1}, {}),
    ],
)
def test_a_pickle_that_does_not_fit_its_file(tmp_path, value, storages):
    refused(tmp_path / "weights.pth", archive(pickled(value), storages))


HISTORY = HistoryBuffer([1.0], [1])
SCALAR, RECONSTRUCT = np._core.multiarray.scalar, np._core.multiarray._reconstruct


@pytest.mark.parametrize(
    "value",
    [
        Call(os.system, "false"),
        Call(getattr, dict, "__subclasses__"),
        Call(getattr, HISTORY, "__init__"),
        np.array([Call(os.system, "false")], dtype=object),
        np.zeros(2, dtype=[("a", "f4"), ("b", "O")]),
        np.array(["2026-01-01"], dtype="M8[D]"),
        Call(RECONSTRUCT, np.matrix, (0,), b"b"),
        Call(SCALAR, np.dtype("f8"), b"123"),
        Call(SCALAR, np.dtype("O"), b""),
        torch.nn.Linear(1, 1),
        Call(HistoryBuffer, state={"_log_history": [1], "max_length": 3}),
        Path("a"),
    ],
    ids=range(12),
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_not_plain_data(tmp_path, value, zipped):
    data = torch_bytes({"a": torch.ones(1), "extra": value}, zipped)
    refused(tmp_path / "weights.pth", data, "checkpoint-unsafe", "corrupt")


def test_shared_memory_is_counted(tmp_path):
    """Many tensors of one storage, each of which a conversion would copy."""
    many = [tensor((250_000,), (1,), count=250_000) for _ in range(1000)]
    one = tensor((250_000,), (1,), count=250_000)
    data = archive(pickled(many), {"0": bytes(1_000_000)})
    refused(tmp_path / "weights.pth", data, "corrupt")
    path = tmp_path / "weights.pth"
    path.write_bytes(archive(pickled({"a": one, "b": one}), {"0": bytes(1_000_000)}))
    result = load_checkpoint(path)
    assert result["a"].shape == result["b"].shape == (250_000,)


def test_a_small_expanded_tensor_is_read(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(1).expand(3, 5)}, path)
    assert torch.equal(load_checkpoint(path)["a"], torch.ones(3, 5))


def test_bytes_that_are_copied_are_counted(tmp_path):
    text = b"X" + struct.pack("<I", 1_000_000) + b"x" * 1_000_000
    start = b"\x80\x02(c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\0\0\0latin1q\x02"
    copies = b"h\x00h\x01h\x02\x86R" * 2000
    refused(tmp_path / "weights.pth", archive(start + copies + b"t."), "corrupt")


def doubling(open_: bytes, levels: int) -> bytes:
    """A list of two times the list before, and so on."""
    steps = b"".join(b"]q%c(h%ch%ce" % (level + 1, level, level) for level in range(levels))
    return b"\x80\x02" + open_ + b"q\x00" + steps + b"."


@pytest.mark.parametrize(
    "data",
    [
        doubling(b"]", 60),
        b"\x80\x02]q\x00h\x00a.",
        b"\x80\x02}q\x00K\x01h\x00s.",
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        b"\x80\x02)" + b"\x85" * 200_000 + b".",
        b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
        b"\x80\x02" + b"(" * 200_000 + b".",
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02\x8d" + b"\xff" * 8 + b".",
        b"\x80\x02c" + b"a" * 100_000 + b"\nb\n.",
        b"\x80\x02R.",
        b"\x80\x02}}R.",
        b"\x80\x02}}b.",
        b"\x80\x02Kae.",
        b"\x80\x02h\x07.",
        b"\x80\x02(K\x01u.",
        b"\x80\x02\x81.",
        b"\x80\x02cbuiltins\nset\n}b.",
        b"\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}q\0X\1\0\0\0ah\0sb.",
        b".",
        b"",
    ],
    ids=range(22),
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_torchs_instructions_that_is_a_bomb(tmp_path, data, zipped):
    if zipped:
        refused(tmp_path / "weights.pth", archive(data))
    else:
        old = torch_bytes({}, zipped=False)
        header = old[: old.find(b"}q\x00.", old.find(b"type_sizes")) - 2]
        refused(tmp_path / "weights.pth", header + data)


def test_the_old_format_with_sizes_that_lie(tmp_path):
    data = torch_bytes({"a": torch.arange(4.0)}, zipped=False)
    place = data.rfind(struct.pack("<q", 4))
    for count in (5, 3, -1, 2**62):
        refused(tmp_path / "weights.pth", changed(data, place, struct.pack("<q", count)))
    claim = data.find(b"K\x04Nt")
    assert claim > 0
    refused(tmp_path / "weights.pth", changed(data, claim, b"K\xffNt"))
    refused(tmp_path / "weights.pth", data[:claim] + b"J\0\0\0\x7fNt" + data[claim + 4 :])


# --- fuzzing --------------------------------------------------------------------------------


def safetensors_bytes(entries: dict[str, object], data: bytes = b"") -> bytes:
    header = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    return struct.pack("<Q", len(header)) + header + data


def examples() -> dict[str, bytes]:
    arrays = {key: value.float().reshape(-1).numpy() for key, value in WEIGHTS.items()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("w.pth", torch_bytes(WEIGHTS))
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "new.pth": torch_bytes({"state_dict": WEIGHTS, "meta": {"x": np.arange(3), "y": [1, "a"]}}),
        "old.pth": torch_bytes({"state_dict": WEIGHTS, "meta": {"x": np.arange(3)}}, zipped=False),
        "gluon.params": write_params(arrays),
        "packed.zip": packed.getvalue(),
        "w.safetensors": safetensors_bytes({"a": entry}, bytes(8)),
    }


EXAMPLES = examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_truncated(tmp_path, name):
    data = EXAMPLES[name]
    for length in [*range(1, 40), *range(40, len(data), max(1, len(data) // 60)), len(data) - 1]:
        refused(tmp_path / name, data[:length])


@pytest.mark.parametrize("name", EXAMPLES)
@given(data=st.data())
@FUZZ
def test_any_change_is_read_or_refused_in_words(tmp_path, name, data):
    whole = bytearray(EXAMPLES[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        piece = data.draw(
            st.binary(min_size=1, max_size=8)
            | st.sampled_from([b"\xff" * 8, b"PK\5\6", b"PK\1\2", b"\0" * 4, b"\xff\xff\xff\x7f"])
        )
        kind = data.draw(st.sampled_from(["replace", "insert", "delete"]))
        if kind == "insert":
            whole[at:at] = piece
        elif kind == "delete":
            del whole[at : at + len(piece)]
        else:
            whole[at : at + len(piece)] = piece
        if not whole:
            whole = bytearray(b"\0")
    path = tmp_path / name
    path.write_bytes(whole)
    try:
        record = load_record(path)
    except UserError as error:
        told = str(error)
    else:
        told = str(path)
        if name == "new.pth":  # a checksum covers all of its content
            assert torch.equal(record["state_dict"]["a"], WEIGHTS["a"])
    assert str(path) in told and "\n" not in told


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
        b'"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b"[]",
        b'{"a": []}',
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "x": 1}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
        b'"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [0, 9223372036854775808], "data_offsets": [0, 0]}}',
    ],
)
def test_safetensors_with_a_header_that_lies(tmp_path, data):
    refused(tmp_path / "weights.safetensors", safetensors_bytes(data, bytes(8)), "corrupt")


def test_safetensors_as_the_package_writes_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    weights = {
        **WEIGHTS,
        "bf": torch.ones(2, 2, dtype=torch.bfloat16),
        "flag": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
    }
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(weights, path, metadata={"format": "pt"})
    result = load_checkpoint(path)
    theirs = safetensors.load_file(path)
    assert result.keys() == theirs.keys()
    for key, value in theirs.items():
        assert result[key].dtype == value.dtype and torch.equal(result[key], value)


def test_a_pipe_and_a_device(tmp_path):
    os.mkfifo(tmp_path / "weights.pth")
    for path in (tmp_path / "weights.pth", "/dev/zero"):
        with raises_user_error("wrong-path-type", path):
            load_checkpoint(path)
