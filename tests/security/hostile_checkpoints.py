# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Makes hostile weights files. Each function has one attack and returns the file it wrote."""

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from sandbox import Sandbox

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}
Attack = Callable[[Sandbox], Path]


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def payloads(box: Sandbox) -> dict[str, Any]:
    """Objects that run something when an unrestricted unpickler reads them."""
    canary = str(box.canary)
    other = box.files / "second_stage.pkl"
    other.write_bytes(pickle.dumps(Call(os.system, f"touch '{canary}'")))
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


PAYLOADS = [
    "os.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.open",
    "builtins.getattr", "Path.touch", "importlib.import_module", "torch.load", "numpy.load",
    "Config.fromstring", "torch.nn.Module",
]  # fmt: skip


# --- pickles that call functions, in every container -----------------------------------------


def torch_zip(box: Sandbox, value: Any) -> Path:
    """A program in the present format of ``torch.save``."""
    torch.save({"state_dict": {**WEIGHTS, "evil": value}}, box.files / "evil.pth")
    return box.files / "evil.pth"


def torch_legacy(box: Sandbox, value: Any) -> Path:
    """A program in the old format of ``torch.save``."""
    record = {"state_dict": {**WEIGHTS, "evil": value}}
    torch.save(record, box.files / "evil.pth", _use_new_zipfile_serialization=False)
    return box.files / "evil.pth"


def raw_pickle(box: Sandbox, value: Any) -> Path:
    """A bare pickle named as a checkpoint."""
    (box.files / "evil.pth").write_bytes(pickle.dumps({"state_dict": value}))
    return box.files / "evil.pth"


def as_safetensors(box: Sandbox, value: Any) -> Path:
    """A pickle named ``.safetensors``."""
    (box.files / "evil.safetensors").write_bytes(pickle.dumps(value))
    return box.files / "evil.safetensors"


def in_zip(box: Sandbox, value: Any) -> Path:
    """A checkpoint with a program in a ``.zip``."""
    inner = torch_zip(box, value)
    with zipfile.ZipFile(box.files / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(inner, "weights.pth")
    return box.files / "evil.zip"


def in_meta(box: Sandbox, value: Any) -> Path:
    """A program beside plain weights."""
    record = {"meta": {"hook": value}, "state_dict": WEIGHTS, "message_hub": {}, "optimizer": {}}
    torch.save(record, box.files / "evil.pth")
    return box.files / "evil.pth"


def object_array(box: Sandbox, value: Any) -> Path:
    """A NumPy array of objects, whose elements are pickled."""
    array = np.empty(1, dtype=object)
    array[0] = value
    torch.save({"state_dict": {"evil": array}}, box.files / "evil.pth")
    return box.files / "evil.pth"


def npz(box: Sandbox, value: Any) -> Path:
    """An ``.npz`` of object arrays."""
    array = np.empty(1, dtype=object)
    array[0] = value
    np.savez(box.files / "evil.npz", evil=array)
    return box.files / "evil.npz"


CONTAINERS = [torch_zip, torch_legacy, raw_pickle, as_safetensors, in_zip, in_meta, object_array,
              npz]  # fmt: skip


# --- archives that say one thing and hold another ---------------------------------------------


def _members(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def _torch_bytes(record: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(record, buffer, **options)
    return buffer.getvalue()


def packed_members(box: Sandbox) -> Path:
    """A checkpoint whose members are compressed and unpack to a thousand times the file."""
    with zipfile.ZipFile(box.files / "evil.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _members(_torch_bytes({"state_dict": {"a": torch.zeros(1 << 24)}})):
            archive.writestr(name, data)
    return box.files / "evil.pth"


def two_directories(box: Sandbox) -> Path:
    """Python's zipfile reads one directory of the archive, torch another with packed members.

    The end record gives the first directory's offset; zipfile takes the one right before the end
    record and assumes that something was put before the archive.
    """
    packed = packed_members(box).read_bytes()
    end = packed.rindex(b"PK\5\6")
    size, offset = struct.unpack_from("<II", packed, end + 12)
    directory = bytearray(packed[offset : offset + size])
    at = 0
    while at < size:  # the second directory: nothing is packed and everything is small
        struct.pack_into("<H", directory, at + 10, 0)
        struct.pack_into("<II", directory, at + 20, 1, 1)
        lengths = struct.unpack_from("<HHH", directory, at + 28)
        at += 46 + sum(lengths)
    (box.files / "evil.pth").write_bytes(packed[:end] + bytes(directory) + packed[end:])
    return box.files / "evil.pth"


def two_end_records(box: Sandbox) -> Path:
    """A valid small archive, and behind it, as its comment, the end record of another one."""
    small = _torch_bytes({"state_dict": WEIGHTS})
    packed = packed_members(box).read_bytes()
    end = packed.rindex(b"PK\5\6")
    tail = bytearray(small)
    own = tail.rindex(b"PK\5\6")
    comment = packed[end:]
    struct.pack_into("<H", tail, own + 20, len(comment))
    (box.files / "evil.pth").write_bytes(packed[:end] + bytes(tail) + comment)
    return box.files / "evil.pth"


def overlapping_members(box: Sandbox) -> Path:
    """Sixty-four storages share the bytes of one member, so the whole is larger than the file."""
    state = {f"a{i}": torch.full((1 << 18,), float(i)) for i in range(64)}
    members = dict(_members(_torch_bytes({"state_dict": state})))
    first = next(name for name in members if name.endswith("/data/0"))
    with zipfile.ZipFile(box.files / "evil.pth", "w") as archive:
        for name, data in members.items():
            if "/data/" not in name or name == first:
                archive.writestr(name, data)
        for name in members:
            if "/data/" in name and name != first:
                entry = copy.copy(archive.getinfo(first))
                entry.filename = name
                archive.filelist.append(entry)  # only the directory is written of it
    return box.files / "evil.pth"


def huge_declared_size(box: Sandbox) -> Path:
    """A ``.zip`` whose member announces four gigabytes."""
    with zipfile.ZipFile(box.files / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights.pth", bytes(1 << 20))
    data = bytearray((box.files / "evil.zip").read_bytes())
    at = data.rindex(b"PK\1\2")
    struct.pack_into("<I", data, at + 24, 0xFFFFFFF0)
    (box.files / "evil.zip").write_bytes(data)
    return box.files / "evil.zip"


def climbing_member(box: Sandbox) -> Path:
    """A ``.zip`` whose member would be written outside of the folder."""
    with zipfile.ZipFile(box.files / "evil.zip", "w") as archive:
        archive.writestr("../outside/weights.pth", _torch_bytes({"state_dict": WEIGHTS}))
    return box.files / "evil.zip"


def linked_member(box: Sandbox) -> Path:
    """A ``.zip`` whose member is a symbolic link to a file of the user."""
    entry = zipfile.ZipInfo("weights.pth")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(box.files / "evil.zip", "w") as archive:
        archive.writestr(entry, str(box.outside / "weights.pth"))
    return box.files / "evil.zip"


def zip_in_zip(box: Sandbox) -> Path:
    """An archive in an archive in an archive."""
    data = _torch_bytes({"state_dict": WEIGHTS})
    for name in ("weights.pth", "weights.pth", "weights.pth"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, data)
        data = buffer.getvalue()
    (box.files / "evil.zip").write_bytes(data)
    return box.files / "evil.zip"


def executable_archive(box: Sandbox) -> Path:
    """Bytes before the archive, as in a self-extracting program."""
    data = _torch_bytes({"state_dict": {"a": torch.zeros(8)}})
    (box.files / "evil.pth").write_bytes(b"#!/bin/sh\nexit\n" + data)
    return box.files / "evil.pth"


# --- tensors that are larger than their bytes ---------------------------------------------------


def _saved(box: Sandbox, state: dict[Any, Any], **options: Any) -> Path:
    torch.save({"state_dict": state}, box.files / "evil.pth", **options)
    return box.files / "evil.pth"


def terabyte_of_one_number(box: Sandbox) -> Path:
    """One number that strides of zero spread over a terabyte."""
    return _saved(box, {"layer.weight": torch.zeros(1).expand(1 << 20, 1 << 18)})


def terabyte_in_many_keys(box: Sandbox) -> Path:
    """A thousand keys that share the bytes of one tensor of 16 MiB."""
    whole = torch.zeros(1 << 22)
    return _saved(box, {f"layer.{i}": whole.as_strided((1 << 22,), (1,)) for i in range(1000)})


def meta_tensor(box: Sandbox) -> Path:
    """A tensor with a size and without values."""
    return _saved(box, {"layer.weight": torch.empty(1 << 40, device="meta")})


def sparse_tensor(box: Sandbox) -> Path:
    """One number at the end of a terabyte of zeros."""
    return _saved(box, {"a": torch.sparse_coo_tensor([[1 << 37]], [1.0], ((1 << 37) + 1,))})


def legacy_storage_of_a_terabyte(box: Sandbox) -> Path:
    """The old format announces a storage of a terabyte before its bytes."""
    data = _torch_bytes(
        {"state_dict": {"a": torch.zeros(77)}}, _use_new_zipfile_serialization=False
    )
    large = data.replace(b"KMNt", b"\x8a\x06" + (1 << 38).to_bytes(6, "little") + b"Nt", 1)
    assert large != data
    (box.files / "evil.pth").write_bytes(large)
    return box.files / "evil.pth"


def storage_beyond_its_record(box: Sandbox) -> Path:
    """A storage that claims more numbers than its member holds: a read beyond the buffer."""
    with zipfile.ZipFile(box.files / "evil.pth", "w") as archive:
        for name, data in _members(_torch_bytes({"state_dict": {"a": torch.zeros(77)}})):
            archive.writestr(name, data.replace(b"KM", b"M\x00\x40"))
    return box.files / "evil.pth"


def params_of_a_terabyte(box: Sandbox) -> Path:
    """An MXNet file of one array whose shape is a terabyte."""
    head = struct.pack("<QQQ", 0x112, 0, 1)
    array = struct.pack("<IiI", 0xF993FAC9, 0, 2) + struct.pack("<qq", 1 << 20, 1 << 18)
    rest = struct.pack("<iii", 1, 0, 0) + bytes(64)
    name = b"arg:a"
    names = struct.pack("<QQ", 1, len(name)) + name
    (box.files / "evil.params").write_bytes(head + array + rest + names)
    return box.files / "evil.params"


def params_of_endless_dimensions(box: Sandbox) -> Path:
    """An MXNet file of an array with two thousand million dimensions."""
    head = struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<IiI", 0xF993FAC9, 0, 0x7FFFFFFF)
    (box.files / "evil.params").write_bytes(head + bytes(256))
    return box.files / "evil.params"


def params_with_endless_list(box: Sandbox) -> Path:
    """An MXNet file that announces 2^60 arrays."""
    (box.files / "evil.params").write_bytes(struct.pack("<QQQ", 0x112, 0, 1 << 60) + bytes(256))
    return box.files / "evil.params"


def safetensors_with_endless_header(box: Sandbox) -> Path:
    """A ``.safetensors`` header of 2^62 bytes."""
    (box.files / "evil.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b'{"a":{}}')
    return box.files / "evil.safetensors"


def _safetensors(box: Sandbox, header: bytes, data: bytes = bytes(64)) -> Path:
    (box.files / "evil.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    return box.files / "evil.safetensors"


def safetensors_shape_bomb(box: Sandbox) -> Path:
    """A ``.safetensors`` shape whose product overflows to the number of bytes."""
    entry = {"dtype": "F32", "shape": [1 << 62, 4, 1 << 62, 4], "data_offsets": [0, 0]}
    return _safetensors(box, json.dumps({"a": entry}).encode())


def safetensors_shared_bytes(box: Sandbox) -> Path:
    """Ten thousand ``.safetensors`` tensors that share the same bytes."""
    entry = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
    return _safetensors(box, json.dumps({f"a{i}": entry for i in range(10_000)}).encode())


def safetensors_nested_header(box: Sandbox) -> Path:
    """A ``.safetensors`` header of JSON that is nested 200,000 deep."""
    return _safetensors(box, b'{"a":' * 200_000 + b"1" + b"}" * 200_000)


# --- pickles of plain data that are hard to handle ------------------------------------------------


def nested_deep(box: Sandbox) -> Path:
    """Lists in lists, 100,000 deep."""
    body = pickle.PROTO + b"\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    return _with_pickle(box, body)


def nested_tuples(box: Sandbox) -> Path:
    """Tuples in tuples, 100,000 deep, as a value of the state dict."""
    inner = b")" + b"\x85" * 100_000
    return _with_pickle(box, b"\x80\x02}X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00a"
                        + inner + b"ss.")  # fmt: skip


def laughing_lists(box: Sandbox) -> Path:
    """Ten lists that each hold the one before ten times: 10^10 elements when walked."""
    value: list[Any] = ["ha"] * 10
    for _ in range(9):
        value = [value] * 10
    torch.save({"state_dict": {"a": value}}, box.files / "evil.pth")
    return box.files / "evil.pth"


def holds_itself(box: Sandbox) -> Path:
    """A record whose state dict is the record."""
    record: dict[str, Any] = {}
    record["state_dict"] = record
    torch.save(record, box.files / "evil.pth")
    return box.files / "evil.pth"


def endless_prefix(box: Sandbox) -> Path:
    """A key that begins with the prefix of a wrapper 300,000 times."""
    return _saved(box, {"module." * 300_000 + "layer.weight": torch.ones(2)})


def keys_of_other_types(box: Sandbox) -> Path:
    """Keys that are numbers, bytes, tuples and None."""
    return _saved(box, {1: torch.ones(2), b"a": torch.ones(2), (1, 2): torch.ones(2), None: 1})


def values_of_other_types(box: Sandbox) -> Path:
    """Values that are no tensors."""
    return _saved(box, {"a": "text", "b": None, "c": [1, {2: 3}], "d": float("nan"), "e": 2**70})


def damaged_arrays(box: Sandbox) -> Path:
    """NumPy arrays whose pickles are given wrong states."""
    array = np.zeros(4, np.float32)
    reduced = array.__reduce__()

    class Damaged:
        def __reduce__(self) -> Any:
            return reduced[0], reduced[1], (1, (1 << 60,), np.dtype("f4"), False, b"1234")

    return _saved(box, {"a": Damaged()})


def _with_pickle(box: Sandbox, body: bytes) -> Path:
    with zipfile.ZipFile(box.files / "evil.pth", "w") as archive:
        for name, data in _members(_torch_bytes({"state_dict": WEIGHTS})):
            archive.writestr(name, body if name.endswith("data.pkl") else data)
    return box.files / "evil.pth"


def truncated(box: Sandbox) -> Path:
    """A checkpoint that ends in the middle."""
    data = _torch_bytes({"state_dict": WEIGHTS})
    (box.files / "evil.pth").write_bytes(data[: len(data) // 2])
    return box.files / "evil.pth"


def torchscript(box: Sandbox) -> Path:
    """A TorchScript program named as a checkpoint."""
    from hostile_models import write_torchscript

    return write_torchscript(box, box.files / "evil.pth", record=None)


def terminal_escapes(box: Sandbox) -> Path:
    """Key names that would change the title and colours of the reader's terminal."""
    return _saved(box, {"\x1b]0;owned\x07\x1b[31mlayer": "no tensor", "b\r\nerror: other": 1})


def gzip_bomb_in_params(box: Sandbox) -> Path:
    """Compressed zeros named as MXNet's weights."""
    (box.files / "evil.params").write_bytes(zlib.compress(bytes(1 << 24)))
    return box.files / "evil.params"


#: Refused by every loader.
REFUSED: list[Attack] = [
    packed_members, two_directories, two_end_records, overlapping_members, huge_declared_size,
    climbing_member, linked_member, zip_in_zip, terabyte_of_one_number, meta_tensor, sparse_tensor,
    legacy_storage_of_a_terabyte, storage_beyond_its_record, params_of_a_terabyte,
    params_of_endless_dimensions, params_with_endless_list, safetensors_with_endless_header,
    safetensors_shape_bomb, safetensors_shared_bytes, safetensors_nested_header, nested_deep,
    nested_tuples, laughing_lists, holds_itself, keys_of_other_types, values_of_other_types,
    damaged_arrays, truncated, torchscript, terminal_escapes, gzip_bomb_in_params,
]  # fmt: skip
#: Refused, or read as what they are: plain weights.
HARMLESS: list[Attack] = [executable_archive, terabyte_in_many_keys, endless_prefix]
