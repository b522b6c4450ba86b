# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Reads what ``torch.save`` writes, in its present format (a .zip) and its old one.

PyTorch's own reader takes the sizes of storages from the pickle without comparing them with the
file, so that a file can make it read memory that is not its own. Here a storage is exactly what the
file has for it.
"""

from __future__ import annotations

import io
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, cast

import torch

from ..errors import UserError
from ..io.text import printable
from .hashes import AGAIN
from .pickle_names import Budget, Damaged, NotAllowed, Storage, StorageType
from .plain_pickle import read_pickle
from .zip_directory import STORED, Member, read_directory

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_CHUNK = 16 << 20
#: Tensors that share memory may, each counted, take this many times the size of the file ...
_MOST_USES = 8
#: ... and this much more, bytes.
_FLOOR = 64 << 20


def read_torch(file: BinaryIO, label: str) -> Any:
    """The record of a file that ``torch.save`` wrote, as :func:`.plain_pickle.read_pickle` reads.

    Nothing in the file is ever run; tensors are on the CPU.

    Raises:
        UserError: The file is truncated, damaged, of another format, asks for more than tensors
            and plain data, or would take far more memory than its size.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(512)
    try:
        if head.startswith(b"PK"):
            return _read_zip(file, read_directory(file, label), label)
        if head[257:262] == b"ustar":
            message = (
                "a .tar file of PyTorch before version 0.2; load it with an old PyTorch and "
                "save it again"
            )
            raise UserError("format", label, message)
        if not head.startswith(b"\x80\2"):
            raise Damaged("it does not begin as one")
        file.seek(0)
        return _read_legacy(file, size)
    except UserError:
        raise
    except NotAllowed as error:
        name = str(error)
        if name.startswith("torch._utils._rebuild_"):
            message = (
                "holds a sparse, quantised or nested tensor, or one without values; only "
                "dense ones are supported"
            )
            raise UserError("checkpoint", label, message) from error
        raise UserError(
            "checkpoint-unsafe",
            label,
            f"refused, and nothing was run: it asks for {name[:100]!r}, which is neither a "
            "tensor nor plain data and could run any program. Get the weights from their "
            "publisher, or have whoever made the file save the state dict alone",
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        reason = printable(str(error).partition("\n")[0][:200])
        if not isinstance(error, Damaged):
            reason = f"{type(error).__name__}: {reason}"
        message = f"truncated, damaged or not a checkpoint ({reason}); {AGAIN}"
        raise UserError("corrupt", label, message) from error


def _budget(size: int) -> Budget:
    return Budget(_MOST_USES * size + _FLOOR)


class _Storages:
    """The storages of a file, each made once, by ``make(key, number of bytes)``."""

    def __init__(self, make: Callable[[str, int], torch.Tensor]) -> None:
        self._make = make
        self.found: dict[str, Storage] = {}

    def __call__(self, reference: tuple) -> Storage:
        if len(reference) < 5 or reference[0] != "storage":
            raise Damaged("a damaged reference to a storage")
        kind, key, _location, count, *view = reference[1:]
        if not (
            isinstance(kind, StorageType)
            and isinstance(key, str)
            and re.fullmatch(r"[\w.-]{1,100}", key)
            and type(count) is int
            and count >= 0
        ):
            raise Damaged("a damaged reference to a storage")
        if any(item is not None for item in view):
            raise Damaged("a storage that is part of another one")
        size = count * kind.dtype.itemsize
        storage = self.found.get(key)
        if storage is None:
            storage = self.found[key] = Storage(self._make(key, size), kind.dtype)
        elif storage.dtype != kind.dtype or storage.untyped.nbytes() != size:
            raise Damaged(f"storage {key} has two types or sizes")
        return storage


def _fill(file: BinaryIO, data: torch.Tensor) -> int:
    """Reads a tensor's bytes from a file; returns their CRC-32."""
    crc = 0
    view = memoryview(cast(Any, data.numpy()))
    while view:
        count = cast(io.BufferedReader, file).readinto(view[:_CHUNK])
        if not count:
            raise Damaged("it ends early")
        crc = zlib.crc32(view[:count], crc)
        view = view[count:]
    return crc


# --- the present format ---------------------------------------------------------------------


_PROGRAM = ("constants.pkl", "code/")  # of TorchScript, whose code is compressed


def _read_zip(file: BinaryIO, members: Sequence[Member], label: str) -> Any:
    named = {member.name: member for member in members}
    roots = {name.partition("/")[0] for name in named}
    if any(name.partition("/")[2].startswith(_PROGRAM) for name in named):
        message = "a TorchScript program, not a checkpoint; save the model's state_dict instead"
        raise UserError("format", label, message)
    if any(member.method != STORED or member.encrypted for member in members):
        message = f"refused: it is compressed, which torch.save does not do; {AGAIN}"
        raise UserError("too-large", label, message)
    if len(roots) != 1:
        raise Damaged("an archive of several records")
    root = roots.pop()
    if f"{root}/data.pkl" not in named:
        raise Damaged("it has no data.pkl")

    def content(member: Member) -> torch.Tensor:
        data = torch.empty(member.size, dtype=torch.uint8)
        file.seek(member.offset)
        crc = _fill(file, data)
        # torch.serialization.set_crc32_options(False) writes 0
        if member.crc not in (0, crc):
            raise Damaged(f"the checksum of {member.name} does not fit")
        return data

    def storage(key: str, size: int) -> torch.Tensor:
        member = named.get(f"{root}/data/{key}")
        if member is None or member.size != size:
            raise Damaged(f"storage {key} is not there in the size that is asked for")
        return content(member)

    if f"{root}/byteorder" in named:
        member = named[f"{root}/byteorder"]
        order = content(member).numpy().tobytes() if member.size < 100 else b""
        if order != sys.byteorder.encode():
            raise Damaged(f"its byte order is {order[:20]!r}")
    record = content(named[f"{root}/data.pkl"]).numpy().tobytes()
    budget = _budget(file.seek(0, 2))
    return read_pickle(io.BytesIO(record), len(record), budget, _Storages(storage))


# --- the old format -------------------------------------------------------------------------


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """Pickles of a magic number, a version, the machine, the record, the keys; then storages."""
    budget = _budget(size)
    left = size

    def nothing(reference: tuple) -> Storage:
        raise Damaged("a storage in the header")

    def allocate(key: str, count: int) -> torch.Tensor:
        nonlocal left
        left -= count
        if left < 0:
            raise Damaged("its storages are larger than the file")
        return torch.zeros(count, dtype=torch.uint8)

    if read_pickle(file, size, budget, nothing) != _LEGACY_MAGIC:
        raise Damaged("it does not begin as one")
    if read_pickle(file, size, budget, nothing) != _LEGACY_PROTOCOL:
        raise Damaged("an unknown version of the format")
    machine = read_pickle(file, size, budget, nothing)
    if not isinstance(machine, dict) or machine.get("little_endian") is not (
        sys.byteorder == "little"
    ):
        raise Damaged("its byte order is another one")
    storages = _Storages(allocate)
    record = read_pickle(file, size, budget, storages)
    keys = read_pickle(file, size, budget, nothing)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Damaged("a damaged list of storages")
    if len(set(keys)) != len(keys) or set(keys) != set(storages.found):
        raise Damaged("it does not have each storage once")
    for key in keys:
        storage = storages.found[key]
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count * storage.dtype.itemsize != storage.untyped.nbytes():
            raise Damaged(f"storage {key} is not there in the size that is asked for")
        _fill(file, storage.bytes)
    return record
