# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Makes hostile weights files: each function has one attack and gives the content of a file."""

from __future__ import annotations

import copy
import functools
import importlib
import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from sandbox import Sandbox

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def payloads(box: Sandbox) -> dict[str, Any]:
    """Objects that run something when an unrestricted unpickler reads them."""
    canary = str(box.canary)
    other = box.write("second.pkl", pickle.dumps(Call(os.system, f"touch '{canary}'")))
    return {
        "os.system": Call(os.system, f"touch '{canary}'"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", canary]),
        "builtins.eval": Call(eval, box.code),
        "builtins.exec": Call(exec, box.code),
        "builtins.open": Call(open, canary, "w"),
        "builtins.getattr": Call(getattr, Path, "touch"),
        "Path.touch": Call(Path.touch, Path(canary)),
        "importlib.import_module": Call(importlib.import_module, box.module),
        "torch.load": Call(functools.partial(torch.load, weights_only=False), str(other)),
        "numpy.load": Call(functools.partial(np.load, allow_pickle=True), str(other)),
        "Config.fromstring": Call(Config.fromstring, box.code, ".py"),
        "torch.nn.Module": torch.nn.Linear(2, 2),
    }


# --- pickles that call functions, in every container -----------------------------------------


def _torch_bytes(record: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(record, buffer, **options)
    return buffer.getvalue()


def _legacy_bytes(record: Any) -> bytes:
    return _torch_bytes(record, _use_new_zipfile_serialization=False)


def _zip_bytes(members: list[tuple[Any, bytes | str]], packed: bool = False) -> bytes:
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def _members(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def _array_of(value: Any) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


def _npz_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, evil=_array_of(value))
    return buffer.getvalue()


def _beside_weights(value: Any) -> dict[str, Any]:
    return {"state_dict": {**WEIGHTS, "evil": value}}


#: Name of the file, and its content around a payload.
CONTAINERS: dict[str, tuple[str, Callable[[Any], bytes]]] = {
    "torch zip": ("evil.pth", lambda value: _torch_bytes(_beside_weights(value))),
    "torch legacy": ("evil.pth", lambda value: _legacy_bytes(_beside_weights(value))),
    "raw pickle": ("evil.pth", lambda value: pickle.dumps({"state_dict": value})),
    "safetensors": ("evil.safetensors", pickle.dumps),
    "zip": (
        "evil.zip",
        lambda value: _zip_bytes([("weights.pth", _torch_bytes(_beside_weights(value)))], True),
    ),
    "meta": (
        "evil.pth",
        lambda value: _torch_bytes(
            {"meta": {"hook": value}, "state_dict": WEIGHTS, "message_hub": {}, "optimizer": {}}
        ),
    ),
    "object array": (
        "evil.pth",
        lambda value: _torch_bytes({"state_dict": {"evil": _array_of(value)}}),
    ),
    "npz": ("evil.npz", _npz_bytes),
}


def pickled(box: Sandbox, container: str, payload: str) -> Path:
    """A file that calls a function when it is unpickled."""
    name, write = CONTAINERS[container]
    return box.write(name, write(payloads(box)[payload]))


# --- files of data that lie, grow, or are hard to handle -------------------------------------


@dataclass(frozen=True)
class Attack:
    """What makes a hostile file, and whether every loader of weights must refuse it."""

    make: Callable[[Sandbox], Path]
    must_be_refused: bool


ATTACKS: dict[str, Attack] = {}


def attack(suffix: str, must_be_refused: bool = True) -> Callable[..., Any]:
    """Register a function that gives the content of a file."""

    def register(content: Callable[[Sandbox], bytes]) -> Callable[[Sandbox], bytes]:
        make = lambda box: box.write(f"evil{suffix}", content(box))  # noqa: E731
        ATTACKS[content.__name__] = Attack(make, must_be_refused)
        return content

    return register


def _state(state: Any, **options: Any) -> bytes:
    return _torch_bytes({"state_dict": state}, **options)


@attack(".pth")
def packed_members(box: Sandbox) -> bytes:
    """Members are compressed and unpack to a thousand times the file."""
    return _zip_bytes(_members(_state({"a": torch.zeros(1 << 24)})), packed=True)


@attack(".pth")
def two_directories(box: Sandbox) -> bytes:
    """Python's zipfile reads one directory of the archive, torch another with packed members.

    The end record gives the first directory's offset; zipfile takes the one right before the end
    record and assumes that something was put before the archive.
    """
    packed = packed_members(box)
    end = packed.rindex(b"PK\5\6")
    size, offset = struct.unpack_from("<II", packed, end + 12)
    directory = bytearray(packed[offset : offset + size])
    at = 0
    while at < size:  # the second directory: nothing is packed and everything is small
        struct.pack_into("<H", directory, at + 10, 0)
        struct.pack_into("<II", directory, at + 20, 1, 1)
        at += 46 + sum(struct.unpack_from("<HHH", directory, at + 28))
    return packed[:end] + bytes(directory) + packed[end:]


@attack(".pth")
def two_end_records(box: Sandbox) -> bytes:
    """A valid small archive, and behind it, as its comment, the end record of another one."""
    packed = packed_members(box)
    end = packed.rindex(b"PK\5\6")
    tail = bytearray(_state(WEIGHTS))
    struct.pack_into("<H", tail, tail.rindex(b"PK\5\6") + 20, len(packed) - end)
    return packed[:end] + bytes(tail) + packed[end:]


@attack(".pth")
def overlapping_members(box: Sandbox) -> bytes:
    """Sixty-four storages share the bytes of one member, so the whole is larger than the file."""
    members = _members(_state({f"a{i}": torch.full((1 << 18,), float(i)) for i in range(64)}))
    first = next(name for name, _ in members if name.endswith("/data/0"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            if "/data/" not in name or name == first:
                archive.writestr(name, data)
        for name, _ in members:
            if "/data/" in name and name != first:
                entry = copy.copy(archive.getinfo(first))
                entry.filename = name
                archive.filelist.append(entry)  # only its entry of the directory is written
    return buffer.getvalue()


@attack(".zip")
def huge_declared_size(box: Sandbox) -> bytes:
    """A member announces four gigabytes."""
    data = bytearray(_zip_bytes([("weights.pth", bytes(1 << 20))], packed=True))
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + 24, 0xFFFFFFF0)
    return bytes(data)


@attack(".zip")
def climbing_member(box: Sandbox) -> bytes:
    """A member would be written outside of the folder."""
    return _zip_bytes([("../outside/weights.pth", _state(WEIGHTS))])


@attack(".zip")
def linked_member(box: Sandbox) -> bytes:
    """A member is a symbolic link to a file of the user."""
    entry = zipfile.ZipInfo("weights.pth")
    entry.external_attr = 0o120777 << 16
    return _zip_bytes([(entry, str(box.outside / "weights.pth"))])


@attack(".zip")
def zip_in_zip(box: Sandbox) -> bytes:
    """An archive in an archive in an archive."""
    data = _state(WEIGHTS)
    for _ in range(3):
        data = _zip_bytes([("weights.pth", data)], packed=True)
    return data


@attack(".pth", must_be_refused=False)
def executable_archive(box: Sandbox) -> bytes:
    """Bytes before the archive, as in a self-extracting program."""
    return b"#!/bin/sh\nexit\n" + _state({"a": torch.zeros(8)})


@attack(".pth")
def terabyte_of_one_number(box: Sandbox) -> bytes:
    """One number that strides of zero spread over a terabyte."""
    return _state({"layer.weight": torch.zeros(1).expand(1 << 20, 1 << 18)})


@attack(".pth", must_be_refused=False)
def terabyte_in_many_keys(box: Sandbox) -> bytes:
    """A thousand keys that share the bytes of one tensor of 16 MiB."""
    whole = torch.zeros(1 << 22)
    return _state({f"layer.{i}": whole.as_strided((1 << 22,), (1,)) for i in range(1000)})


@attack(".pth")
def meta_tensor(box: Sandbox) -> bytes:
    """A tensor with a size and without values."""
    return _state({"layer.weight": torch.empty(1 << 40, device="meta")})


@attack(".pth")
def sparse_tensor(box: Sandbox) -> bytes:
    """One number at the end of a terabyte of zeros."""
    return _state({"a": torch.sparse_coo_tensor([[1 << 37]], [1.0], ((1 << 37) + 1,))})


@attack(".pth")
def legacy_storage_of_a_terabyte(box: Sandbox) -> bytes:
    """The old format announces a storage of a terabyte before its bytes."""
    data = _legacy_bytes({"state_dict": {"a": torch.zeros(77)}})
    large = data.replace(b"KMNt", b"\x8a\x06" + (1 << 38).to_bytes(6, "little") + b"Nt", 1)
    assert large != data
    return large


@attack(".pth")
def storage_beyond_its_record(box: Sandbox) -> bytes:
    """A storage claims more numbers than its member holds: a read beyond the buffer."""
    members = _members(_state({"a": torch.zeros(77)}))
    return _zip_bytes([(name, data.replace(b"KM", b"M\x00\x40")) for name, data in members])


@attack(".params")
def params_of_a_terabyte(box: Sandbox) -> bytes:
    """An MXNet array whose shape is a terabyte."""
    head = struct.pack("<QQQ", 0x112, 0, 1)
    array = struct.pack("<IiI", 0xF993FAC9, 0, 2) + struct.pack("<qq", 1 << 20, 1 << 18)
    rest = struct.pack("<iii", 1, 0, 0) + bytes(64)
    return head + array + rest + struct.pack("<QQ", 1, 5) + b"arg:a"


@attack(".params")
def params_of_endless_dimensions(box: Sandbox) -> bytes:
    """An MXNet array with two thousand million dimensions."""
    head = struct.pack("<QQQ", 0x112, 0, 1)
    return head + struct.pack("<IiI", 0xF993FAC9, 0, 0x7FFFFFFF) + bytes(256)


@attack(".params")
def compressed_params(box: Sandbox) -> bytes:
    """Compressed zeros named as MXNet's weights."""
    return zlib.compress(bytes(1 << 24))


def _safetensors(header: Any, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@attack(".safetensors")
def safetensors_with_endless_header(box: Sandbox) -> bytes:
    """A header of 2^62 bytes."""
    return (1 << 62).to_bytes(8, "little") + b'{"a":{}}'


@attack(".safetensors")
def safetensors_overflowing_shape(box: Sandbox) -> bytes:
    """A shape whose product overflows to the number of bytes."""
    entry = {"dtype": "F32", "shape": [1 << 62, 4, 1 << 62, 4], "data_offsets": [0, 0]}
    return _safetensors({"a": entry})


@attack(".safetensors")
def safetensors_shared_bytes(box: Sandbox) -> bytes:
    """Ten thousand tensors that share the same bytes."""
    entry = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
    return _safetensors({f"a{i}": entry for i in range(10_000)})


@attack(".safetensors")
def safetensors_nested_header(box: Sandbox) -> bytes:
    """A header of JSON that is nested 200,000 deep."""
    return _safetensors(b'{"a":' * 200_000 + b"1" + b"}" * 200_000)


def _with_pickle(body: bytes) -> bytes:
    members = _members(_state(WEIGHTS))
    return _zip_bytes([(n, body if n.endswith("data.pkl") else data) for n, data in members])


@attack(".pth")
def nested_lists(box: Sandbox) -> bytes:
    """Lists in lists, 100,000 deep."""
    return _with_pickle(pickle.PROTO + b"\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


@attack(".pth")
def laughing_lists(box: Sandbox) -> bytes:
    """Ten lists that each hold the one before ten times: 10^10 elements when walked."""
    value: list[Any] = ["ha"] * 10
    for _ in range(9):
        value = [value] * 10
    return _state({"a": value})


@attack(".pth")
def holds_itself(box: Sandbox) -> bytes:
    """A record whose state dict is the record."""
    record: dict[str, Any] = {}
    record["state_dict"] = record
    return _torch_bytes(record)


@attack(".pth", must_be_refused=False)
def endless_prefix(box: Sandbox) -> bytes:
    """A key that begins with the prefix of a wrapper 300,000 times."""
    return _state({"module." * 300_000 + "layer.weight": torch.ones(2)})


@attack(".pth")
def keys_of_other_types(box: Sandbox) -> bytes:
    """Keys that are numbers, bytes, tuples and None."""
    return _state({1: torch.ones(2), b"a": torch.ones(2), (1, 2): torch.ones(2), None: 1})


@attack(".pth")
def values_of_other_types(box: Sandbox) -> bytes:
    """Values that are not tensors."""
    return _state({"a": "text", "b": None, "c": [1, {2: 3}], "d": float("nan"), "e": 2**70})


@attack(".pth")
def damaged_arrays(box: Sandbox) -> bytes:
    """NumPy arrays whose pickles have wrong states."""
    reduced = np.zeros(4, np.float32).__reduce__()

    class Damaged:
        def __reduce__(self) -> Any:
            return reduced[0], reduced[1], (1, (1 << 60,), np.dtype("f4"), False, b"1234")

    return _state({"a": Damaged()})


@attack(".pth")
def truncated(box: Sandbox) -> bytes:
    """A checkpoint that ends in the middle."""
    data = _state(WEIGHTS)
    return data[: len(data) // 2]


@attack(".pth")
def torchscript(box: Sandbox) -> bytes:
    """A TorchScript program named as a checkpoint."""
    from hostile_models import torchscript_bytes

    return torchscript_bytes(box, None)


@attack(".pth")
def terminal_escapes(box: Sandbox) -> bytes:
    """Key names that would change the title and colours of the reader's terminal."""
    return _state({"\x1b]0;owned\x07\x1b[31mlayer": "no tensor", "b\r\nerror: other": 1})
