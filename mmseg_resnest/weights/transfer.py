# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""One attempt to bring a file from an address, continued from where an earlier one was cut off."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from ..io.http import HttpError, announced_size, open_address, read_body, status_text

#: The largest file that is fetched, bytes; data sets have 20 GB.
_MAX_BYTES = 64 << 30
#: Files that a server may label as compressed, for they are.
_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zip")
#: Answers after which another attempt may succeed.
BUSY = {408, 425, 429, 500, 502, 503, 504}


def size_of(part: Path) -> int:
    """Bytes that have arrived."""
    return part.stat().st_size if part.exists() else 0


def forget(part: Path) -> None:
    """Remove a partial file and its notes."""
    part.unlink(missing_ok=True)
    part.with_suffix(".json").unlink(missing_ok=True)


def _notes(part: Path, url: str) -> dict[str, Any]:
    """Size and validator that were noted for a partial file, if it is of this address."""
    try:
        notes = json.loads(part.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) and notes.get("url") == url else {}


def transfer(
    url: str,
    part: Path,
    timeout: float,
    has_hash: bool,
    most: int | None = None,
    more_headers: Mapping[str, str] | None = None,
) -> bool:
    """Bring the file of an address into a partial file, from where that ends.

    The part is ``.NAME.part``; beside it ``.NAME.json`` holds what continuing it needs. Returns
    whether it continued what was there. ``has_hash``: the complete file will be compared with one.
    ``most``: bytes that it may have, 64 GiB if None.

    Raises:
        HttpError: It did not arrive; what came is kept.
        OSError: The part cannot be written.
    """
    notes = _notes(part, url)
    # without a validator or a hash nothing tells that two halves belong together
    have = size_of(part) if notes.get("validator") or (notes and has_hash) else 0
    if have and have == notes.get("size"):
        return True  # the process ended before it was checked
    headers = {**(more_headers or {}), **({"Range": f"bytes={have}-"} if have else {})}
    if have and notes.get("validator"):
        headers["If-Range"] = notes["validator"]
    packed = part.stem.lower().endswith(_PACKED)
    with open_address(url, timeout, headers, packed) as answer:
        status, rest = answer.status_code, announced_size(answer)
        if status == 206 and have and rest and notes.get("size") in (None, have + rest):
            pass
        elif status == 200:
            have = 0
            forget(part)
            tag = answer.headers.get("ETag", "")
            validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified")
            about = {"url": url, "size": rest, "validator": validator}
            part.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
        elif have and status in (206, 416):
            forget(part)
            raise HttpError("has changed the file meanwhile", retryable=True)
        else:
            raise HttpError(f"answers {status_text(answer)}", status in BUSY, answer)
        total = None if rest is None else have + rest
        if (rest or 0) > (free := shutil.disk_usage(part.parent).free):
            message = f"{(rest or 0) / 1e6:.0f} MB are needed, {free / 1e6:.0f} free"
            raise OSError(errno.ENOSPC, message, str(part.parent))
        with part.open("ab") as file, _bar(part.stem[1:], url, total, have) as bar:
            for piece in read_body(answer, timeout, (most or _MAX_BYTES) - have):
                file.write(piece)
                bar.update(len(piece))
    if total is not None and size_of(part) != total:
        message = f"ends the transfer after {size_of(part)} of {total} bytes"
        raise HttpError(message, retryable=True)
    return have > 0


def _bar(name: str, url: str, total: int | None, have: int) -> tqdm:
    bar = tqdm(
        desc=name, total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1024,
        disable=None, leave=False,
    )  # fmt: skip
    if bar.disable:  # not a terminal: one line
        size = f" ({total / 1e6:.1f} MB{', the rest' if have else ''})" if total else ""
        say(f"fetching {name}{size} from {urlsplit(url).netloc}")
    return bar


def say(line: str) -> None:
    """Tell the user."""
    print(line, file=sys.stderr, flush=True)
