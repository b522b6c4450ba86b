# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Hashes of files, and the 8 digits of one that published names end in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch

from ..errors import UserError

_CHUNK = 1 << 20
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.(?:pth|pt|params|safetensors)$")
_DATE = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])$")
AGAIN = "get the file again from where it came from"


def promised_digits(name: str) -> str | None:
    """The 8 hex digits of a hash that a file's name ends in, None without.

    They are the start of the SHA-256 (ResNeSt, OpenMMLab, timm), of the SHA-1 (PyTorch-Encoding,
    GluonCV) or perhaps of the MD5 (detectron2's habit; its fork for ResNeSt does not say). Eight
    digits that are a date are not taken for a checksum.
    """
    match = _HASH_IN_NAME.search(name)
    return match[1] if match and not _DATE.match(match[1]) else None


def hex_digests(file: BinaryIO, *algorithms: str) -> list[str]:
    """The hashes of a file from its beginning, to which it is wound back."""
    digests = [hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms]
    file.seek(0)
    while chunk := file.read(_CHUNK):
        for digest in digests:
            digest.update(chunk)
    file.seek(0)
    return [digest.hexdigest() for digest in digests]


def tensor_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[Any]]:
    """Type, shape and a digest of the content of each tensor of a state dict."""
    found = {}
    for name, value in tensors.items():
        content: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        found[name] = [str(value.dtype), list(value.shape), digest]
    return found


def difference(file: BinaryIO, digest: str, algorithm: str | None = None) -> str | None:
    """How a file's hash differs from ``digest`` (all its digits, or the first); None if not.

    ``algorithm`` None takes SHA-256, SHA-1 or MD5.
    """
    algorithms = [algorithm] if algorithm else ["sha256", "sha1", "md5"]
    found = hex_digests(file, *algorithms)
    if any(value.startswith(digest) for value in found):
        return None
    shown = ", ".join(
        f"{name.upper().replace('SHA', 'SHA-')} {value[: max(8, len(digest))]}"
        for name, value in zip(algorithms, found, strict=True)
    )
    return f"the content has {shown}, not {digest}"


def check_promise(file: BinaryIO, name: str, label: str) -> None:
    """Compares a file with the hash that its name promises, if any; raises UserError."""
    digits = promised_digits(name)
    wrong = difference(file, digits) if digits else None
    if wrong:
        message = (
            f"the name promises checksum {digits}, but {wrong}; {AGAIN}, or rename it if "
            "those digits are not a checksum"
        )
        raise UserError("corrupt", label, message)
