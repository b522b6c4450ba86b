# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""JSON that a stranger may have written: bounded in size and depth, with errors in words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any

from ..errors import UserError

#: Levels of lists and objects; the records of this package and annotation files have below 20.
MAX_DEPTH = 200
_BLOCK = 1 << 20  # bytes


def parse_json(text: str | bytes, subject: str) -> Any:
    """Parse a JSON document; bytes are UTF-8, with or without a byte order mark.

    Raises:
        UserError: It is not JSON, is nested deeper than 200 levels, or holds a number that is too
            long to read.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text)
    except RecursionError:
        raise _too_deep(subject) from None
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text ({error.reason} at byte {error.start})"
        raise UserError("format", subject, message) from error
    except ValueError as error:  # also a number of more than 4300 digits
        raise UserError("format", subject, f"not a JSON file ({error})") from error
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep(subject)
        level = [
            child for item in level for child in (item.values() if isinstance(item, dict) else item)
        ]
    return value


def read_json(path: str | os.PathLike[str], subject: str, max_bytes: int | None = None) -> Any:
    """Read a JSON file.

    Raises:
        UserError: It cannot be read, is larger than ``max_bytes``, or as in :func:`parse_json`.
    """
    try:
        with Path(path).open("rb") as file:
            data = _read(file, max_bytes)
    except OSError as error:
        raise UserError("unreadable", subject, f"cannot be read ({error.strerror})") from error
    if data is None:
        raise UserError("too-large", subject, f"larger than the limit of {max_bytes:,} bytes")
    return parse_json(data, subject)


def _read(file: IO[bytes], max_bytes: int | None) -> bytes | None:
    """The content; None if it is larger than ``max_bytes``."""
    if max_bytes is None:
        return file.read()
    if os.fstat(file.fileno()).st_size > max_bytes:
        return None
    # In blocks: file.read(max_bytes) would take memory for the limit, whatever the file's size.
    blocks, size = [], 0
    while block := file.read(_BLOCK):
        size += len(block)
        if size > max_bytes:
            return None
        blocks.append(block)
    return b"".join(blocks)


def _too_deep(subject: str) -> UserError:
    return UserError("format", subject, f"nested deeper than {MAX_DEPTH} levels")
